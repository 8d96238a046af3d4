"""What a metric is: numbers of each example, and what their sums are worth.

Whatever is a function of such sums can be resampled by one product of matrices: intervals, and differences of methods.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

Row = dict[str, Any]
"""One example with its answer, as in `predictions.jsonl`."""


class Metric(ABC):
    """One measure of quality."""

    name: ClassVar[str]
    """Its key in results."""
    heading: ClassVar[str]
    """What tables call it."""
    higher_is_better: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """What has to be said besides so that others can compare; empty where the name says it all."""
        return ""

    @abstractmethod
    def statistics(self, rows: list[Row]) -> np.ndarray:
        """Numbers of each example (examples, k)."""

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """The metric (...) of sums of statistics (..., k)."""


def ratio(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Upper / lower, and 0 where that is nothing."""
    return np.divide(upper, lower, out=np.zeros(np.broadcast(upper, lower).shape), where=lower != 0)

"""How good answers are: a file here is one kind of metric, each a function of sums over the examples."""

from trimtab.lab.metrics.base import Metric, Row

__all__ = ["Metric", "Row"]

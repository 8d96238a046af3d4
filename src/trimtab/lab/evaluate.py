"""How good a model is on held-out examples, and how sure that number is."""

from collections.abc import Callable

import numpy as np

from trimtab.lab.config import Evaluate

Scores = Callable[[np.ndarray, np.ndarray], dict[str, float]]


def intervals(
    scores: Scores, outputs: np.ndarray, labels: np.ndarray, evaluate: Evaluate
) -> dict[str, dict[str, float]]:
    """Every metric with its percentile bootstrap interval over examples.

    Args:
        scores: gives the metrics of some outputs and labels.
        outputs: (examples, ...) what the model put out.
        labels: (examples,) what would have been right.
        evaluate: how sure, how often, which seed.

    Returns:
        Metric -> `value` (on the examples as they are), `low` and `high`.
    """
    draws = np.random.default_rng(evaluate.seed)
    resampled = []
    for _ in range(evaluate.resamples):
        chosen = draws.integers(len(labels), size=len(labels))
        resampled.append(scores(outputs[chosen], labels[chosen]))
    tail = (1 - evaluate.confidence) / 2
    result = {}
    for metric, value in scores(outputs, labels).items():
        low, high = np.quantile([sample[metric] for sample in resampled], [tail, 1 - tail])
        result[metric] = {"value": value, "low": float(low), "high": float(high)}
    return result

"""How good answers are, how sure that number is, and whether two methods differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.lab.config import Evaluate
from trimtab.lab.metrics import Metric, Row


def scores(metrics: Sequence[Metric], rows: list[Row]) -> dict[str, float]:
    """Every metric of some rows."""
    return {metric.name: float(metric.value(metric.statistics(rows).sum(0))) for metric in metrics}


def intervals(metrics: Sequence[Metric], rows: list[Row], evaluate: Evaluate) -> dict[str, dict[str, Any]]:
    """Every metric with its percentile bootstrap interval over examples.

    Returns:
        Metric -> `value` (on the examples as they are), `low` and `high`; and `signature` where there is one.
    """
    drawn = resampled(len(rows), evaluate)
    tail = (1 - evaluate.confidence) / 2
    result: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        statistics = metric.statistics(rows)
        low, high = np.quantile(metric.value(drawn @ statistics), [tail, 1 - tail])
        value = float(metric.value(statistics.sum(0)))
        signature = {"signature": metric.signature} if metric.signature else {}
        result[metric.name] = {"value": value, "low": float(low), "high": float(high)} | signature
    return result


def paired(metric: Metric, first: list[Row], second: list[Row], evaluate: Evaluate) -> dict[str, float]:
    """How much better `second` is than `first` on the same examples, by a paired bootstrap.

    Args:
        metric: of which the difference is.
        first: rows of one method.
        second: rows of the other, in the same order.
        evaluate: how sure, how often, which seed.

    Returns:
        `difference` (second - first), `low` and `high` of its interval, and the two-sided `p` of no difference.
    """
    before, after = metric.statistics(first), metric.statistics(second)
    drawn = resampled(len(first), evaluate)
    differences = metric.value(drawn @ after) - metric.value(drawn @ before)
    tail = (1 - evaluate.confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "difference": float(metric.value(after.sum(0)) - metric.value(before.sum(0))),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1))),
    }


def resampled(number: int, evaluate: Evaluate) -> np.ndarray:
    """How often each of some examples is drawn, (resamples, examples): the same for all that is compared."""
    draws = np.random.default_rng(evaluate.seed)
    return draws.multinomial(number, np.full(number, 1 / number), size=evaluate.resamples).astype(np.float32)

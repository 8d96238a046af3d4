"""How good answers are, how sure that number is, and whether two methods differ."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trimtab.lab.config import Evaluate
from trimtab.lab.metrics import Metric, Row

AT_ONCE = 4_000_000
"""Counts that are held at a time."""


def scores(metrics: Sequence[Metric], rows: list[Row]) -> dict[str, float]:
    """Every metric of some rows."""
    return {metric.name: float(metric.value(metric.statistics(rows).sum(0))) for metric in metrics}


def intervals(metrics: Sequence[Metric], rows: list[Row], evaluate: Evaluate) -> dict[str, dict[str, Any]]:
    """Every metric with its percentile bootstrap interval over examples.

    Returns:
        Metric -> `value` (on the examples as they are), `low` and `high`; and `signature` where there is one.
    """
    statistics = [metric.statistics(rows) for metric in metrics]
    spreads = _spreads(list(zip(metrics, statistics, strict=True)), evaluate)
    result: dict[str, dict[str, Any]] = {}
    for metric, each, spread in zip(metrics, statistics, spreads, strict=True):
        signature = {"signature": metric.signature} if metric.signature else {}
        result[metric.name] = {"value": float(metric.value(each.sum(0))), **_ends(spread, evaluate), **signature}
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
    lower, upper = _spreads([(metric, before), (metric, after)], evaluate)
    differences = upper - lower
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "difference": float(metric.value(after.sum(0)) - metric.value(before.sum(0))),
        **_ends(differences, evaluate),
        "p": float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1))),
    }


def resampled(number: int, evaluate: Evaluate) -> Iterator[np.ndarray]:
    """How often each of some examples is drawn, (resamples, examples) in all: the same for all that is compared.

    They come in pieces, as many resamples at a time as fit into little memory; where they are cut changes no number.
    """
    draws = np.random.default_rng(evaluate.seed)
    shares, size = np.full(number, 1 / number), max(1, AT_ONCE // number)
    for start in range(0, evaluate.resamples, size):
        yield draws.multinomial(number, shares, size=min(size, evaluate.resamples - start)).astype(float)


def _spreads(measured: list[tuple[Metric, np.ndarray]], evaluate: Evaluate) -> list[np.ndarray]:
    """The value of each metric, by the statistics beside it, in every resample (resamples,)."""
    parts = [
        [metric.value(drawn @ statistics) for metric, statistics in measured]
        for drawn in resampled(len(measured[0][1]), evaluate)
    ]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _ends(spread: np.ndarray, evaluate: Evaluate) -> dict[str, float]:
    """Where the interval of a resampled number begins and ends."""
    tail = (1 - evaluate.confidence) / 2
    low, high = np.quantile(spread, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}

"""Metrics of answers that are a tag for each word: rows with `tags` and `predicted`, in the IOB2 scheme."""

import numpy as np

from trimtab.lab.metrics.base import Metric, Row, ratio


class _Entities(Metric):
    """Of each example: entities rightly found, found, and there. Right are those of the same kind and ends."""

    def statistics(self, rows: list[Row]) -> np.ndarray:
        return np.array([_counts(row["tags"], row["predicted"]) for row in rows], float)


class EntityF1(_Entities):
    """F1 over all entities."""

    name, heading = "entity_f1", "entity F1"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


class EntityPrecision(_Entities):
    """Share of the entities found that are right."""

    name, heading = "entity_precision", "precision"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 1])


class EntityRecall(_Entities):
    """Share of the entities there that were found."""

    name, heading = "entity_recall", "recall"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 2])


class TagAccuracy(Metric):
    """Share of words with the right tag."""

    name, heading = "tag_accuracy", "tag accuracy"

    def statistics(self, rows: list[Row]) -> np.ndarray:
        right = [sum(a == b for a, b in zip(row["tags"], row["predicted"], strict=True)) for row in rows]
        return np.array([[hits, len(row["tags"])] for hits, row in zip(right, rows, strict=True)], float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 1])


ENTITIES = (EntityF1(), EntityPrecision(), EntityRecall(), TagAccuracy())


def _counts(true: list[str], given: list[str]) -> tuple[int, int, int]:
    from seqeval.scheme import IOB2, Entities

    there, found = ({e.to_tuple()[1:] for e in Entities([tags], IOB2).entities[0]} for tags in (true, given))
    return len(there & found), len(found), len(there)

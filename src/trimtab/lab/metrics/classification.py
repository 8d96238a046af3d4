"""Metrics of answers that are one of several labels: rows with `label`, `predicted` and `probabilities`."""

from typing import ClassVar

import numpy as np

from trimtab.lab.metrics.base import Metric, Row, ratio


class Accuracy(Metric):
    """Share of examples with the right label."""

    name, heading = "accuracy", "accuracy"

    def statistics(self, rows: list[Row]) -> np.ndarray:
        return np.array([[row["label"] == row["predicted"], 1] for row in rows], float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 1])


class _ByClass(Metric):
    """Of each class: examples that were rightly given it, that were given it, and that have it."""

    def statistics(self, rows: list[Row]) -> np.ndarray:
        place = {label: number for number, label in enumerate(labels(rows))}
        counted = np.zeros((len(rows), 3, len(place)))
        for number, row in enumerate(rows):
            given, right = place[row["predicted"]], place[row["label"]]
            counted[number, 0, right] = given == right
            counted[number, 1, given] = counted[number, 2, right] = 1
        return counted.reshape(len(rows), -1)

    @staticmethod
    def parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right, given and true, each (..., classes)."""
        right, given, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        return right, given, true


class MacroF1(_ByClass):
    """Mean F1 of the classes that occur among the labels or the answers."""

    name, heading = "macro_f1", "macro-F1"

    def value(self, sums: np.ndarray) -> np.ndarray:
        right, given, true = self.parts(sums)
        return ratio(ratio(2 * right, given + true).sum(-1), (given + true > 0).sum(-1))


class MCC(_ByClass):
    """Matthews' correlation of labels and answers, for several classes: https://doi.org/10.1016/j.compbiolchem.2004.09.006."""

    name, heading = "mcc", "MCC"

    def value(self, sums: np.ndarray) -> np.ndarray:
        right, given, true = self.parts(sums)
        total = true.sum(-1)
        above = right.sum(-1) * total - (given * true).sum(-1)
        spread = (total**2 - (given**2).sum(-1)) * (total**2 - (true**2).sum(-1))
        return ratio(above, np.sqrt(spread))


class CalibrationError(Metric):
    """Expected calibration error: how far confidence is from accuracy, over bins (https://arxiv.org/abs/1706.04599)."""

    name, heading, higher_is_better = "ece", "ECE", False
    bins: ClassVar[int] = 15

    def statistics(self, rows: list[Row]) -> np.ndarray:
        counted = np.zeros((len(rows), self.bins, 3))
        for number, row in enumerate(rows):
            sure = row["probabilities"][row["predicted"]]
            place = min(int(sure * self.bins), self.bins - 1)
            counted[number, place] = sure, row["label"] == row["predicted"], 1
        return counted.reshape(len(rows), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        sure, right, count = np.moveaxis(sums.reshape(*sums.shape[:-1], self.bins, 3), -1, 0)
        return ratio(np.abs(sure - right).sum(-1), count.sum(-1))


CLASSIFICATION = (Accuracy(), MacroF1(), MCC(), CalibrationError())
"""What is measured of every classification."""


def labels(rows: list[Row]) -> list[str]:
    """All labels that rows know of, sorted."""
    return sorted({label for row in rows for label in (row["label"], *row["probabilities"])})


def confusion(rows: list[Row]) -> dict[str, dict[str, int]]:
    """True label -> given label -> number of examples."""
    names = labels(rows)
    table = {true: dict.fromkeys(names, 0) for true in names}
    for row in rows:
        table[row["label"]][row["predicted"]] += 1
    return table

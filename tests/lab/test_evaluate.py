"""Scores and their intervals, against known cases."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from trimtab.lab.config import Evaluate
from trimtab.lab.evaluate import intervals
from trimtab.lab.tasks.text_classification import TextClassification

TASK = TextClassification()


def one_hot(guesses, classes):
    return np.eye(classes)[guesses]


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_scikit_learn(seed):
    draws = np.random.default_rng(seed)
    labels, guesses = draws.integers(5, size=(2, 30))  # so few that some classes are missing
    scores = TASK.scores(one_hot(guesses, 7), labels)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    """Resampling n answers of which k are right draws k' ~ Binomial(n, k/n); its quantiles are known."""
    from scipy.stats import binom

    n, right = 400, 340
    labels = np.zeros(n, dtype=int)
    outputs = one_hot([0] * right + [1] * (n - right), 2)
    found = intervals(TASK.scores, outputs, labels, Evaluate(resamples=5000))["accuracy"]
    low, high = binom.ppf([0.025, 0.975], n, right / n) / n
    assert found["value"] == 0.85
    assert found["low"] == pytest.approx(low, abs=0.004)
    assert found["high"] == pytest.approx(high, abs=0.004)


def test_certainty_has_no_width_and_confidence_widens():
    labels = np.arange(60) % 3
    perfect = intervals(TASK.scores, one_hot(labels, 3), labels, Evaluate(resamples=1000))
    assert perfect["macro_f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    outputs = one_hot(np.where(np.arange(60) < 15, 0, labels), 3)
    narrow, wide = (
        intervals(TASK.scores, outputs, labels, Evaluate(resamples=1000, confidence=share))["accuracy"]
        for share in (0.5, 0.99)
    )
    assert wide["low"] < narrow["low"] <= narrow["value"] <= narrow["high"] < wide["high"]


def test_the_seed_decides():
    labels = np.arange(50) % 2
    outputs = np.random.default_rng(0).normal(size=(50, 2))
    first, same, other = (
        intervals(TASK.scores, outputs, labels, Evaluate(resamples=1000, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == same != other


def test_balanced_weights_make_a_rare_class_count_as_much_as_a_frequent_one():
    import torch

    train = [{"text": "", "label": "often"}] * 9 + [{"text": "", "label": "rare"}]
    loss = TextClassification(class_weights="balanced").loss(train, {"labels": ["often", "rare"]})
    logits, labels = torch.tensor([[2.0, 0.0]] * 10), torch.tensor([0] * 9 + [1])
    right, wrong = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]), reduction="none")
    assert loss({"logits": logits}, labels).item() == pytest.approx((right + wrong).item() / 2)
    assert TASK.loss(train, {"labels": ["often", "rare"]}) is None

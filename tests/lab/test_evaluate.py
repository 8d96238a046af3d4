"""Scores and their intervals, against known cases."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from trimtab.lab.config import Evaluate
from trimtab.lab.evaluate import intervals, paired, resampled, scores
from trimtab.lab.metrics.classification import Accuracy, confusion
from trimtab.lab.tasks.text_classification import TextClassification

TASK = TextClassification()


def rows(labels, guesses, sure=1.0, classes="abcdefg"):
    names = [classes[number] for number in guesses]
    rest = (1 - sure) / (len(classes) - 1)
    return [
        {
            "label": classes[label],
            "predicted": guess,
            "probabilities": {name: sure if name == guess else rest for name in classes},
        }
        for label, guess in zip(labels, names, strict=True)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_scikit_learn(seed):
    draws = np.random.default_rng(seed)
    labels, guesses = draws.integers(5, size=(2, 30))  # so few that some classes are missing
    found = scores(TASK.metrics, rows(labels, guesses))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, guesses))


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    half = rows([0] * 10, [0] * 5 + [1] * 5, sure=0.9)
    assert scores(TASK.metrics, half)["ece"] == pytest.approx(0.4)
    both = half + rows([2] * 10, [2] * 6 + [1] * 4, sure=0.6)
    assert scores(TASK.metrics, both)["ece"] == pytest.approx((0.4 + 0.0) / 2)


def test_confusions_are_counted_by_their_labels():
    table = confusion(rows([0, 0, 1], [0, 1, 1]))
    assert (table["a"]["a"], table["a"]["b"], table["b"]["b"], table["b"]["a"]) == (1, 1, 1, 0)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    """Resampling n answers of which k are right draws k' ~ Binomial(n, k/n); its quantiles are known."""
    from scipy.stats import binom

    n, right = 400, 340
    answers = rows([0] * n, [0] * right + [1] * (n - right))
    found = intervals(TASK.metrics, answers, Evaluate(resamples=5000))["accuracy"]
    low, high = binom.ppf([0.025, 0.975], n, right / n) / n
    assert found["value"] == 0.85
    assert found["low"] == pytest.approx(low, abs=0.004)
    assert found["high"] == pytest.approx(high, abs=0.004)


def test_certainty_has_no_width_and_confidence_widens():
    labels = np.arange(60) % 3
    perfect = intervals(TASK.metrics, rows(labels, labels), Evaluate(resamples=1000))
    assert perfect["macro_f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    answers = rows(labels, np.where(np.arange(60) < 15, 0, labels))
    narrow, wide = (
        intervals(TASK.metrics, answers, Evaluate(resamples=1000, confidence=share))["accuracy"]
        for share in (0.5, 0.99)
    )
    assert wide["low"] < narrow["low"] <= narrow["value"] <= narrow["high"] < wide["high"]


def test_the_seed_decides():
    labels = np.arange(50) % 2
    answers = rows(labels, np.random.default_rng(0).integers(2, size=50))
    first, same, other = (intervals(TASK.metrics, answers, Evaluate(resamples=1000, seed=seed)) for seed in (0, 0, 1))
    assert first == same != other


def test_where_the_draws_are_cut_changes_nothing(monkeypatch):
    """One product of all counts with the statistics, as written down here, gives what the pieces give."""
    labels, guesses = np.random.default_rng(3).integers(4, size=(2, 50))
    answers, evaluate = rows(labels, guesses), Evaluate(resamples=1001, seed=5)
    counts = np.random.default_rng(5).multinomial(50, np.full(50, 1 / 50), size=1001)
    spread = counts @ (labels == guesses) / 50
    for held in (4_000_000, 50 * 7, 1):
        monkeypatch.setattr("trimtab.lab.evaluate.AT_ONCE", held)
        assert sum(len(part) for part in resampled(50, evaluate)) == 1001
        assert max(part.size for part in resampled(50, evaluate)) <= max(held, 50)
        found = intervals(TASK.metrics, answers, evaluate)["accuracy"]
        assert [found["low"], found["high"]] == pytest.approx(np.quantile(spread, [0.025, 0.975]))


def test_a_difference_is_seen_where_there_is_one():
    """Two methods that differ on few examples, always in one way, differ clearly, though their intervals overlap."""
    labels = [0] * 400
    first, second = rows(labels, [0] * 300 + [1] * 100), rows(labels, [0] * 315 + [1] * 85)
    found = paired(Accuracy(), first, second, Evaluate(resamples=5000))
    assert found["difference"] == pytest.approx(15 / 400)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] < 0.001
    same = paired(Accuracy(), first, rows(labels, [1] * 100 + [0] * 300), Evaluate(resamples=5000))
    assert same["difference"] == 0
    assert same["low"] < 0 < same["high"]
    assert same["p"] > 0.5


def test_balanced_weights_make_a_rare_class_count_as_much_as_a_frequent_one():
    import torch

    train = [{"text": "", "label": "often"}] * 9 + [{"text": "", "label": "rare"}]
    loss = TextClassification(class_weights="balanced").loss(train, {"labels": ["often", "rare"]})
    logits, labels = torch.tensor([[2.0, 0.0]] * 10), torch.tensor([0] * 9 + [1])
    right, wrong = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]), reduction="none")
    assert loss({"logits": logits}, labels).item() == pytest.approx((right + wrong).item() / 2)
    assert TASK.loss(train, {"labels": ["often", "rare"]}) is None

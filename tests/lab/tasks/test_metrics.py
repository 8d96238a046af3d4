"""Metrics of tags and texts, against other computations."""

import random

import numpy as np
import pytest

from trimtab.lab.metrics.entities import ENTITIES
from trimtab.lab.metrics.generation import LANGUAGE, SUMMARY, TRANSLATION
from trimtab.lab.tasks.seq2seq import Seq2Seq
from trimtab.lab.tasks.token_classification import TokenClassification

from .conftest import phrases


def test_summaries_are_measured_by_rouge():
    task = Seq2Seq(measure="summary")
    from trimtab.lab.evaluate import scores

    rows = [{"target": "the cat sat there", "predicted": "sat the cat"}, {"target": "a b", "predicted": "a b"}]
    found = scores(task.metrics, rows)

    def f1(common, written, wanted):
        return 2 * common / (written + wanted)

    assert found["rouge1"] == pytest.approx((f1(3, 3, 4) + 1) / 2)
    assert found["rouge2"] == pytest.approx((f1(1, 2, 3) + 1) / 2)
    assert found["rougeL"] == pytest.approx((f1(2, 3, 4) + 1) / 2)  # `the cat`


def test_entities_count_whole_and_by_kind():
    from trimtab.lab.evaluate import scores

    rows = [
        {"tags": ["B-A", "I-A", "O", "B-B"], "predicted": ["B-A", "I-A", "O", "B-A"]},
        {"tags": ["B-A", "I-A"], "predicted": ["B-A", "O"]},
    ]
    found = scores(TokenClassification().metrics, rows)
    assert found["entity_precision"] == pytest.approx(1 / 3)
    assert found["entity_recall"] == pytest.approx(1 / 3)
    assert found["tag_accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_entities_are_those_of_seqeval(seed):
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    from trimtab.lab.evaluate import scores

    draws = random.Random(seed)
    true, said = ([draws.choices(["O", "B-A", "I-A", "B-B", "I-B"], k=12) for _ in range(20)] for _ in range(2))
    found = scores(ENTITIES, [{"tags": a, "predicted": b} for a, b in zip(true, said, strict=True)])
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[f"entity_{name}"] == pytest.approx(score(true, said, mode="strict", scheme=IOB2))


@pytest.mark.parametrize("metric", [*TRANSLATION, *SUMMARY, *LANGUAGE, *ENTITIES], ids=lambda metric: metric.name)
def test_a_resample_is_worth_what_its_examples_are(metric):
    """The value of sums with counts is that of the examples written out as often."""
    draws = random.Random(1)
    rows = [
        {"target": a, "predicted": b, "tags": c, "nll": draws.random(), "hits": 1, "tokens": draws.randint(1, 9)}
        for a, b, c in zip(phrases(6, 1), phrases(6, 2), [["B-A", "I-A"], ["O"]] * 3, strict=True)
    ]
    if metric in ENTITIES:
        rows = [row | {"predicted": ["B-A"] * len(row["tags"])} for row in rows]
    counts = [3, 0, 1, 2, 0, 1]
    written_out = [row for row, number in zip(rows, counts, strict=True) for _ in range(number)]
    resampled = metric.value(np.array([counts, counts]) @ metric.statistics(rows))
    assert resampled == pytest.approx([float(metric.value(metric.statistics(written_out).sum(0)))] * 2)

"""Metrics of written answers: rows with a `target` and what was `predicted`."""

from functools import cached_property
from typing import Any

import numpy as np

from trimtab.lab.metrics.base import Metric, Row, ratio


class _Sacre(Metric):
    """A metric of sacrebleu, from 0 to 100: https://aclanthology.org/W18-6319."""

    @cached_property
    def scorer(self) -> Any:
        """Of sacrebleu, which gives and takes sums of statistics for its own bootstrap."""
        from sacrebleu import metrics

        return getattr(metrics, self.name.upper())()

    @property
    def signature(self) -> str:
        if not getattr(self.scorer, "num_refs", 0):  # told by the first references, and of each example there is one
            self.scorer.corpus_score(["-"], [["-"]])
        return str(self.scorer.get_signature())

    def statistics(self, rows: list[Row]) -> np.ndarray:
        answers, targets = [row["predicted"] for row in rows], [row["target"] for row in rows]
        return np.array(self.scorer._extract_corpus_statistics(answers, [targets]), float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        found = [self.scorer._compute_score_from_stats(row.tolist()).score for row in sums.reshape(-1, sums.shape[-1])]
        return np.array(found).reshape(sums.shape[:-1])


class BLEU(_Sacre):
    """BLEU (https://aclanthology.org/P02-1040)."""

    name, heading = "bleu", "BLEU"


class ChrF(_Sacre):
    """chrF (https://aclanthology.org/W15-3049)."""

    name, heading = "chrf", "chrF"


class TER(_Sacre):
    """Translation edit rate (https://aclanthology.org/2006.amta-papers.25)."""

    name, heading, higher_is_better = "ter", "TER", False


class Rouge(Metric):
    """Mean ROUGE F1 (https://aclanthology.org/W04-1013): of words, pairs of words, or the longest common sequence.

    Args:
        kind: `rouge1`, `rouge2` or `rougeL`.
    """

    def __init__(self, kind: str) -> None:
        self.name, self.heading = kind, kind.replace("rouge", "ROUGE-")  # type: ignore[misc]

    def statistics(self, rows: list[Row]) -> np.ndarray:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.name], use_stemmer=True)
        return np.array([[scorer.score(row["target"], row["predicted"])[self.name].fmeasure, 1] for row in rows])

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 1])


class Perplexity(Metric):
    """exp of the mean loss of the tokens that carry loss; rows with `nll`, their sum in nats, and `tokens`."""

    name, heading, higher_is_better = "perplexity", "perplexity", False

    def statistics(self, rows: list[Row]) -> np.ndarray:
        return np.array([[row["nll"], row["tokens"]] for row in rows], float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return np.exp(ratio(sums[..., 0], sums[..., 1]))


class TokenAccuracy(Metric):
    """Share of those tokens that were the likeliest; rows with `hits`."""

    name, heading = "token_accuracy", "token accuracy"

    def statistics(self, rows: list[Row]) -> np.ndarray:
        return np.array([[row["hits"], row["tokens"]] for row in rows], float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return ratio(sums[..., 0], sums[..., 1])


TRANSLATION = (BLEU(), ChrF(), TER())
SUMMARY = (Rouge("rouge1"), Rouge("rouge2"), Rouge("rougeL"))
LANGUAGE = (Perplexity(), TokenAccuracy())

"""The proof that two models are one: the same real inputs through both, and how far what comes out is apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.lab.errors import LabError
from trimtab.lab.tasks.base import Task

BATCH = 8
POSITIONS = 16
"""Of a text, positions whose logits are compared, evenly spread."""
PROMPTS = 8
NEW_TOKENS = 32
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""The largest logit gap, relative to the size of the logits, that rounding of the weights explains."""


class ProofError(LabError):
    """What was written does not compute what it should; nothing of it was left."""


@dataclass(frozen=True)
class Observed:
    """What a model makes of some examples."""

    logits: list[np.ndarray]
    """By example: (classes,), or (positions, vocabulary)."""
    tokens: list[list[int]]
    """Of a generator: what it says to each prompt, greedily."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far two models are apart."""

    examples: int
    largest: float
    """Largest difference of any logit."""
    mean: float
    """Mean difference of the logits."""
    size: float
    """Root mean square of the logits, to see the differences against."""
    choices: tuple[int, int]
    """How often both give the same label or next token, of how many."""
    greedy: tuple[int, int] | None
    """How many prompts are answered by the same tokens, of how many; None where nothing is generated."""
    tolerance: float

    @property
    def relative(self) -> float:
        """The largest difference against the size of the logits."""
        return self.largest / max(self.size, 1e-12)

    @property
    def holds(self) -> bool:
        """Whether the two are the same within the tolerance; NaN is not."""
        return self.relative <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """For the file beside the model."""
        counts = {"choices": list(self.choices), "greedy": list(self.greedy) if self.greedy else None}
        return vars(self) | counts | {"relative": self.relative, "holds": self.holds}

    def __str__(self) -> str:
        said = (
            f"logits of {self.examples} test examples: largest gap {self.largest:.3g}, mean {self.mean:.3g} "
            f"(logits are {self.size:.3g} large; tolerance {self.tolerance:g} of that)\n"
            f"same label or next token: {self.choices[0]} of {self.choices[1]}"
        )
        if self.greedy:
            said += f"\nsame greedy answer: {self.greedy[0]} of {self.greedy[1]} prompts"
        return said

    def require(self, what: str) -> None:
        """Raise ProofError unless it holds."""
        if not self.holds:
            raise ProofError(
                f"{what} does not compute what the fine-tuned model computes, so nothing was left of it:\n{self}\n"
                "If the gap is rounding you accept (half precision), give a larger --tolerance."
            )


def tolerance_of(model: Any) -> float:
    """The tolerance that fits a model's number format."""
    return TOLERANCES.get(str(getattr(model, "dtype", "")).removeprefix("torch."), TOLERANCES["float32"])


def observe(model: Any, task: Task, processor: Any, rows: list[dict[str, Any]]) -> Observed:
    """Show a model encoded examples; let it answer prompts if it generates."""
    import torch

    collate = task.collator(processor)
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    logits: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = {name: values.to(device) for name, values in collate(rows[start : start + BATCH]).items()}
            out = model(**batch)
            values = out["logits"] if "logits" in out else out[0]
            logits += _chosen(values.float().cpu().numpy(), batch)
        tokens = [_answer(model, prompt, device) for prompt in prompts(model, rows)]
    return Observed(logits, tokens)


def prompts(model: Any, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Real prompts for a generator: what comes before the answer; of a text without one, its first half."""
    if not _generates(model):
        return
    for row in rows[:PROMPTS]:
        asked = {key: value for key, value in row.items() if key not in ("labels", "decoder_input_ids")}
        if not model.config.is_encoder_decoder:
            ids, labels = list(row["input_ids"]), list(row.get("labels", ()))
            answer = next((place for place, label in enumerate(labels) if label != -100), 0)
            asked = {"input_ids": ids[: answer or max(1, len(ids) // 2)]}
        yield asked


def compare(first: Observed, second: Observed, tolerance: float) -> Proof:
    """How far two observations of the same examples are apart."""
    gaps = [np.abs(a - b) for a, b in zip(first.logits, second.logits, strict=True)]
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(first.logits, second.logits, strict=True)]
    squares = [np.square(a).mean() for a in first.logits]
    equal = [a == b for a, b in zip(first.tokens, second.tokens, strict=True)]
    return Proof(
        examples=len(gaps),
        largest=float(np.max([gap.max() for gap in gaps])),
        mean=float(np.mean([gap.mean() for gap in gaps])),
        size=float(np.sqrt(np.mean(squares))),
        choices=(int(sum(np.sum(each) for each in same)), int(sum(np.size(each) for each in same))),
        greedy=(sum(equal), len(equal)) if equal else None,
        tolerance=tolerance,
    )


def _generates(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    return bool(can and can())


def _answer(model: Any, prompt: dict[str, Any], device: Any) -> list[int]:
    import torch

    given = {key: torch.as_tensor(value, device=device)[None] for key, value in prompt.items()}
    if "input_ids" in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[0].tolist()


def _chosen(values: np.ndarray, batch: dict[str, Any]) -> list[np.ndarray]:
    """The logits of each example; of a text, at evenly spread positions that are no padding."""
    if values.ndim < 3:
        return list(values)
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if mask is None or mask.shape != values.shape[:2]:
        mask = batch["labels"] != -100 if "labels" in batch and batch["labels"].shape == values.shape[:2] else None
    chosen = []
    for number, row in enumerate(values):
        places = np.arange(len(row)) if mask is None else np.flatnonzero(mask[number].cpu().numpy())
        chosen.append(row[places[np.linspace(0, len(places) - 1, min(POSITIONS, len(places))).astype(int)]])
    return chosen

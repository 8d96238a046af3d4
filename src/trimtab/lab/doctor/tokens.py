"""Which tokens of the training examples carry loss, and what truncation takes away."""

from itertools import groupby
from typing import Any

from trimtab.audit import IGNORED
from trimtab.lab.doctor.findings import Diagnosis, Sample
from trimtab.lab.tasks.base import Example, Facts, Loaded, Task
from trimtab.lab.text import count

MANY = 100_000_000
"""Tokens that no example has."""
OFTEN = 0.01
"""Share of examples from which on something that is lost is worth a warning."""

Row = dict[str, Any]


def look_at_tokens(diagnosis: Diagnosis, task: Task, loaded: Loaded, examples: list[Example], facts: Facts) -> None:
    """Note what share of the examples carries loss, and what is cut; keep one as a sample."""
    rows = task.encode(loaded.processor, examples, facts)
    uncut = _without_limit(task).encode(loaded.processor, examples, facts)
    _look_at_shares(diagnosis, rows)
    if len(rows) == len(uncut):
        _look_at_cuts(diagnosis, rows, uncut)
    _look_at_positions(diagnosis, getattr(loaded.model, "config", None), rows)
    if len(rows) == len(examples):
        middle = sorted(range(len(rows)), key=lambda place: length(rows[place]))[len(rows) // 2]
        diagnosis.sample = sample(task, loaded, examples[middle], rows[middle])


def length(row: Row) -> int:
    """Tokens of an encoded example; 1 where it has none."""
    return len(row.get("input_ids", "1"))


def supervised(row: Row) -> list[bool]:
    """Whether each of an encoded example's labels carries loss."""
    labels = row.get("labels", [])
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    return [label != IGNORED for label in (labels if isinstance(labels, (list, tuple)) else [labels])]


def sample(task: Task, loaded: Loaded, example: Example, row: Row) -> Sample:
    """One example, decoded from what the model reads, with what carries loss."""
    whole = Sample(target=task.target(example))
    if "input_ids" not in row:
        return whole
    marks = supervised(row)
    per_token = not getattr(loaded.model.config, "is_encoder_decoder", False) and len(marks) == length(row)
    if not per_token or length(row) == 1:
        marks = [False] * length(row)
    end, before = 0, ""
    for carries, group in groupby(marks):  # a piece by itself would lose the space that it begins with
        end += len(list(group))
        until = loaded.processor.decode(row["input_ids"][:end])
        whole.pieces.append((until[len(before) :], carries))
        before = until
    if any(marks):
        whole.target = ""
    return whole


def _without_limit(task: Task) -> Task:
    """The task with no end to its texts."""
    limits = [name for name in type(task).model_fields if name.startswith("max_") and name.endswith("length")]
    return task.model_copy(update=dict.fromkeys(limits, MANY))


def _look_at_shares(diagnosis: Diagnosis, rows: list[Row]) -> None:
    shares = [sum(marks) / max(len(marks), 1) for marks in map(supervised, rows)]
    silent = sum(not share for share in shares)
    if silent == len(rows):
        diagnosis.add(
            "error",
            "tokens",
            f"nothing can be learned: no token of {count(len(rows), 'training example')} carries loss",
            "look at the columns under `task:`, and whether the prompts leave room for the answers",
        )
        return
    if silent:
        diagnosis.add(
            "warning",
            "tokens",
            f"{silent:,} of {count(len(rows), 'training example')} carry no loss",
            "they are left out of training: raise max_length, or look at what they lack",
        )
    if any(len(supervised(row)) > 1 for row in rows):
        mean = sum(shares) / len(shares)
        diagnosis.add(
            "info", "tokens", f"{mean:.0%} of an example's labels carry loss ({min(shares):.0%} to {max(shares):.0%})"
        )
    else:
        diagnosis.add("info", "tokens", f"each of {count(len(rows), 'training example')} carries loss with its label")


def _look_at_cuts(diagnosis: Diagnosis, rows: list[Row], uncut: list[Row]) -> None:
    pairs = list(zip(rows, uncut, strict=True))
    longest = max(map(length, uncut))
    lost = {
        "answer": sum(sum(supervised(row)) < sum(supervised(whole)) for row, whole in pairs),
        "text": sum(length(row) < length(whole) for row, whole in pairs),
    }
    for what, number in lost.items():
        if number:
            diagnosis.add(
                "warning" if number > OFTEN * len(rows) else "info",
                "tokens",
                f"{number:,} of {count(len(rows), 'training example')} lose a part of the {what} "
                f"({number / len(rows):.1%}; the longest has {longest:,} tokens, {max(map(length, rows)):,} are kept)",
                "raise max_length, or shorten the texts",
            )
    if not any(lost.values()) and longest > 1:
        diagnosis.add("info", "tokens", f"nothing is cut: the longest example has {longest:,} tokens")


def _look_at_positions(diagnosis: Diagnosis, config: Any, rows: list[Row]) -> None:
    most, longest = getattr(config, "max_position_embeddings", None), max(map(length, rows))
    if most and longest > most:
        turned = hasattr(config, "rope_theta") or hasattr(config, "rope_parameters")  # has no table that could end
        diagnosis.add(
            "warning" if turned else "error",
            "tokens",
            f"the longest example has {longest:,} tokens, and the model knows {most:,} positions",
            f"set max_length to {most} at most",
        )

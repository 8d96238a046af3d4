"""How long a run will take, from the time of a few steps."""

import math
from collections.abc import Callable
from typing import Any

import torch

from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.doctor.steps import Stepper
from trimtab.lab.doctor.tokens import length
from trimtab.lab.measure import seconds
from trimtab.lab.text import duration
from trimtab.lab.training import Train

TOKENS = 1024
"""Of the larger of the two batches that are timed on a CPU."""

Rows = list[dict[str, Any]]


def pace(
    diagnosis: Diagnosis,
    train: Train,
    stepper: Stepper,
    model: Any,
    rows: dict[str, Rows],
    batch: Callable[[Rows], dict[str, Any]],
) -> None:
    """Estimate the seconds of training, with an evaluation an epoch and one at the end.

    Two batches of usual length, one half the other, tell what a step costs and what a token costs.

    Args:
        diagnosis: takes the estimate.
        train: how long is trained.
        stepper: makes the steps, which train the model.
        model: as it is.
        rows: the encoded examples of each part, the longest first.
        batch: makes a batch of some.
    """
    middle = len(rows["train"]) // 2
    most = train.batch_size if torch.cuda.is_available() else TOKENS // length(rows["train"][middle])
    number = max(2, min(train.batch_size, most, len(rows["train"])))
    usual = rows["train"][max(0, middle - number // 2) :][:number]
    model.train()
    optimizer = stepper.optimizer(model)

    def step_seconds(part: Rows) -> float:
        given = batch(part)
        return _faster(lambda: stepper.step(model, optimizer, given))

    whole, half = step_seconds(usual), step_seconds(usual[::2])
    model.eval()
    given = batch(usual)
    look = _faster(lambda: stepper.evaluate(model, given)) / _tokens(usual)
    repeats = min(train.accumulate, 2)
    token = max(0.0, whole - half) / max(_tokens(usual) - _tokens(usual[::2]), 1) / repeats
    step = max(0.0, whole / repeats - token * _tokens(usual))

    batches = math.ceil(len(rows["train"]) / train.batch_size)
    share: float = train.epochs
    if train.max_steps:
        share = min(share, train.max_steps * train.accumulate / batches)
    training = share * (batches * step + token * _tokens(rows["train"]))
    looking = look * (math.ceil(share) * _tokens(rows["validation"]) + _tokens(rows["test"]))
    diagnosis.seconds = training + looking
    diagnosis.add("info", "duration", f"about {duration(diagnosis.seconds)} a run")


def _tokens(rows: Rows) -> int:
    return sum(map(length, rows))


def _faster(call: Callable[[], Any]) -> float:
    """The seconds of the faster of two calls."""
    return min(seconds(call), seconds(call))

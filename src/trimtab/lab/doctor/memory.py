"""What training, evaluating and merging will take of the machine's memory: simulated, then calibrated by a probe."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from trimtab.lab.doctor.gauge import Gauge, Machine, gauge
from trimtab.lab.doctor.simulate import Amount, Batch, simulate
from trimtab.lab.doctor.steps import Stepper

LIBRARIES = 30_000_000
"""Bytes that libraries take on a CPU when they compute for the first time; measured in `benchmarks/memory.py`."""
PROBE_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """The peaks of one run in bytes, in a process of its own; None where there is no such phase."""

    resting: int
    """With the model loaded."""
    train: int
    evaluate: int
    """Of training and evaluating by turns."""
    merge: int | None
    overhead: float
    """What the probe took for each byte of its tensors."""


def foresee(
    model: nn.Module, stepper: Stepper, batch: Batch, evaluation: Batch, probe: Batch, resting: int | None = None
) -> Plan:
    """Plan the memory of a run.

    The simulation knows the tensors, and a few real steps with a probe tell what the allocator makes of them: how far
    the heap grows beyond what lies in it. The model is trained by these steps.

    Args:
        model: loaded, on its device, with its adapter.
        stepper: how it is trained.
        batch: the largest batch of training.
        evaluation: the largest batch of the evaluation.
        probe: a batch that certainly fits.
        resting: what the process held when the model was loaded, if it has computed since.
    """
    reading = gauge()
    resting = reading.now() if resting is None else resting
    full, small = simulate(model, stepper, batch, evaluation), simulate(model, stepper, probe, probe)
    reading.restart()
    model.train()
    optimizer = stepper.optimizer(model)
    for _ in range(PROBE_STEPS):
        stepper.step(model, optimizer, probe)
    peak = _calibrated(reading, resting, small.train)
    train = peak(full.train)
    return Plan(
        resting=resting,
        train=train,
        evaluate=max(train, peak(full.evaluate)),
        merge=None if full.merge is None else peak(full.merge),
        overhead=round((reading.peak() - resting) / max(small.train.total, 1), 3),
    )


def _calibrated(reading: Gauge, resting: int, probe: Amount) -> Callable[[Amount], int]:
    """From tensors to the peak of a process, as the probe teaches.

    A CPU's heap gets holes, in proportion to the small tensors that come and go in it; large ones take what they are. A
    GPU's allocator hands out what is asked for, and its libraries ask for a workspace of their own.
    """
    if not isinstance(reading, Machine):
        workspace = max(0, reading.peak() - resting - probe.total)
        return lambda amount: resting + workspace + amount.total
    taken = reading.peak() - resting - LIBRARIES - probe.large
    factor = max(1.0, taken / max(probe.small, 1))
    return lambda amount: resting + LIBRARIES + amount.large + round(factor * amount.small)

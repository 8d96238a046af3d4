"""What training, evaluating and merging will take of the machine's memory: simulated, then calibrated by a probe."""

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
    """What the allocator took for each byte of small tensors in the probe."""


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
    libraries = LIBRARIES if isinstance(reading, Machine) else 0
    overhead = _overhead(reading, resting + libraries, small.train)

    def peak(amount: Amount) -> int:
        return resting + libraries + amount.large + round(overhead * amount.small)

    train = peak(full.train)
    return Plan(
        resting=resting,
        train=train,
        evaluate=max(train, peak(full.evaluate)),
        merge=None if full.merge is None else peak(full.merge),
        overhead=round(overhead, 3),
    )


def _overhead(reading: Gauge, before: int, amount: Amount) -> float:
    """Bytes that were taken for each byte of small tensors; large ones take what they are."""
    return max(1.0, (reading.peak() - before - amount.large) / max(amount.small, 1))

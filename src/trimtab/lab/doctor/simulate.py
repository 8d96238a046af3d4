"""How much memory tensors will take, found without taking it: the real model, stepped on fake tensors.

A fake tensor has a shape, a number format and a device, but no numbers. Running a training step on them makes and frees
what the real step would, for any architecture, method, batch, number format, optimiser and checkpointing; so the plan
needs no formula for any of these.
"""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trimtab.lab.doctor.steps import Stepper

Batch = dict[str, Any]


LARGE = 32 * 2**20
"""From this size on, in bytes, glibc gives a tensor pages of its own; smaller ones share a heap that gets holes."""


class Amount(NamedTuple):
    """Bytes of tensors, the large ones apart."""

    small: int = 0
    large: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.small + self.large

    def plus(self, size: int) -> "Amount":
        """With one more tensor of a size; with one less, for a negative size."""
        large = abs(size) >= LARGE
        return Amount(self.small + size * (not large), self.large + size * large)

    def minus(self, other: "Amount") -> "Amount":
        """The difference of two amounts."""
        return Amount(self.small - other.small, self.large - other.large)


class Memory(TorchDispatchMode):
    """Within it, `now` is the size of all tensors it has seen that are still alive; `peak` is what it was at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = Amount()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is torch.ops.aten._local_scalar_dense.default:  # a number that a fake tensor cannot tell: any will do
            return 1.0 if args[0].is_floating_point() else 1
        result = call(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.hold(value)
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor until it dies; tensors of one storage count once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now = self.now.plus(self.sizes[key])
            self.peak = max(self.peak, self.now, key=lambda amount: amount.total)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now = self.now.plus(-self.sizes.pop(key, 0))


@dataclass(frozen=True)
class Sizes:
    """What tensors take beyond the model as it was loaded, at the peak of each phase; None where there is no such."""

    train: Amount
    evaluate: Amount
    merge: Amount | None = None


def simulate(model: nn.Module, stepper: Stepper, batch: Batch, evaluation: Batch) -> Sizes:
    """The sizes of training with a batch, and of evaluating another between two epochs.

    Args:
        model: real; it is not touched.
        stepper: how it is trained.
        batch: the largest one of training, real.
        evaluation: the largest one of the evaluation, real.
    """
    with _fake(model) as (twin, fake, memory):
        start, real_batch, real_evaluation = memory.now, fake(batch), fake(evaluation)
        twin.train()
        optimizer = stepper.optimizer(twin)
        for _ in range(2):  # the state of the optimiser is there from the second step on
            stepper.step(twin, optimizer, real_batch)
        train, memory.peak = memory.peak.minus(start), memory.now
        twin.eval()
        stepper.evaluate(twin, real_evaluation)
        return Sizes(train, memory.peak.minus(start), _merged(model))


def _merged(model: nn.Module) -> Amount | None:
    """What merging the adapter into the weights takes at its peak; None for what has none to merge."""
    if not hasattr(model, "merge_and_unload"):
        return None
    with _fake(model) as (twin, _, memory):
        start = memory.now
        try:
            twin.merge_and_unload()
        except (AttributeError, ValueError):  # a prompt, or an adapter that is no change of weights
            return None
        return memory.peak.minus(start)


@contextmanager
def _fake(model: nn.Module) -> Iterator[tuple[Any, Callable[[Batch], Batch], Memory]]:
    """A fake twin of a model, what turns a batch into a fake one, and the memory that counts both."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        twin = copy.deepcopy(model)

    def fake(batch: Batch) -> Batch:
        faked = {key: mode.from_tensor(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
        for value in filter(lambda value: isinstance(value, Tensor), faked.values()):
            memory.hold(value)
        return faked

    memory = Memory()
    with mode, memory, torch.random.fork_rng(devices=[]):
        for tensor in (*twin.parameters(), *twin.buffers()):
            memory.hold(tensor)
        yield twin, fake, memory

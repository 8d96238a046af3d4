"""How a layer computes: which adapters act, by which route, planned when they change; fused paths and their choice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

from .errors import ConfigError
from .method import Adapter
from .sites import Site

BASE = "__base__"
"""In `adapter_names`: rows that take the base model alone."""

Run = Callable[[Tensor, "Plan"], Tensor | None]


@dataclass(frozen=True)
class FastPath:
    """A fused replacement of a chain. `guard` says why not; `run` may still decline a call by returning None."""

    name: str
    guard: Callable[[Site, Sequence[Adapter]], str | None]
    run: Run


FAST: list[FastPath] = []
"""Fused paths in order of preference; filled by `fast/`."""


class FastMode:
    """How fused paths are chosen; `epoch` counts the changes, so that layers know when to plan anew."""

    mode = "auto"
    epoch = 0


@contextmanager
def fast_mode(mode: str) -> Iterator[None]:
    """Within it, fused paths are taken "auto" (where they fit), "off" (never), "require" (an error where none fits)."""
    if mode not in ("auto", "off", "require"):
        raise ConfigError(f"fast mode {mode!r} is unknown; choose 'auto', 'off' or 'require'")
    before = FastMode.mode
    FastMode.mode, FastMode.epoch = mode, FastMode.epoch + 1
    try:
        yield
    finally:
        FastMode.mode, FastMode.epoch = before, FastMode.epoch + 1


class Router:
    """What a model's layers share about the call in flight."""

    def __init__(self) -> None:
        self.rows: tuple[str, ...] | None = None
        """The adapter of each row of the batch; None when all rows are alike."""
        self.index: Tensor | None = None
        """Which of them a layer computes at the moment; None for all."""
        self.given: dict[str, Any] = {}
        """Arguments of adapters that a model's caller cannot take, as in a generation."""
        self.calls: dict[str, Mapping[str, Any]] = {}
        """By adapter, what its method found out about the call."""

    def remember(self, output: Any) -> None:
        """Let a backward pass from a call's output find the call as it was: checkpointed layers run again there."""
        rows, calls = self.rows, self.calls
        if (rows is None and not calls) or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return

        def recall(gradient: Tensor) -> None:
            self.rows, self.calls = rows, calls
            Variable._execution_engine.queue_callback(lambda: setattr(self, "rows", None))  # at the end of the pass

        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(recall)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of what a model returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


@dataclass
class Plan:
    """What one layer does for one tuple of adapters."""

    site: Site
    adapters: list[Adapter]
    direct: bool  # by input/output rather than by the definition
    fast: FastPath | None = None
    reason: str = ""  # why not fast

    @property
    def route(self) -> str:
        """One of "base", "fast:<name>", "shortcut" (by input/output) and "definition"."""
        if not self.adapters:
            return "base"
        return f"fast:{self.fast.name}" if self.fast else "shortcut" if self.direct else "definition"

"""Modules as a whole (a feed-forward network, a transformer's layer), for methods that change what comes out of them.

Such a module has no one weight: an adapter sees what goes in and what comes out, and cannot be merged.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TargetError
from .match import bare, modules, walk
from .sites import Site, Snapshot, site_of, site_type

After = Callable[[Tensor, Tensor], Tensor]


class BlockSite(Site):
    """Any module that maps hidden states (..., inp) to (..., out), which it returns alone or first in a tuple."""

    kind = "block"
    layers = ()
    whole = "what happens inside the module"

    def __init__(self, layer: nn.Module, width: int | None = None) -> None:
        self.layer, self.parameter, self.shape, self.tied = layer, "", (), False
        self.first = next(iter(inspect.signature(layer.forward).parameters), "")
        self.inp, self.out = widths(layer, width)

    @property
    def _like(self) -> Tensor:
        return next((p for p in self.layer.parameters() if p.is_floating_point()), torch.empty(0))

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def bias(self) -> Tensor | None:
        return None

    def owned(self) -> Snapshot:
        return {}

    def around(self, after: After, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module returns for `x`, with `after(x, y)` in place of the hidden states y."""
        y = layer(x, *args, **kwargs)
        return (after(x, y[0]), *y[1:]) if isinstance(y, tuple) else after(x, y)


def widths(layer: nn.Module, width: int | None) -> tuple[int, int]:
    """How many features go into a module and come out of it.

    What comes out is the model's `width` where a layer inside has that, else what a normalisation right in the module
    tells, or its last linear layer. Raises `TargetError` when nothing does.
    """
    inside, norms = _sites((m for _, m in modules(layer)), "linear"), _sites(map(bare, layer.children()), "norm")
    outs, inps = [site.out for site in inside + norms], [site.inp for site in inside]
    out = width if width in outs + inps else outs[-1] if outs else 0
    if not out:
        raise TargetError(f"nothing in this {type(layer).__name__} tells how many features it returns")
    return inps[0] if inps else out, out


def _sites(found: Iterable[nn.Module], kind: str) -> list[Site]:
    """The sites of one kind among modules."""
    return [site_of(m) for m in found if (site := site_type(m)) is not None and site.kind == kind]


def repeated(model: nn.Module) -> list[str]:
    """The names of a model's blocks, first to last: the members of each outermost list of modules of one class."""
    found: dict[str, int] = {}
    for place in walk(model):
        members: Any = place.module
        alike = isinstance(members, nn.ModuleList) and len({type(bare(m)) for m in members}) == 1
        if alike and not any(place.name.startswith(f"{name}.") for name in found):
            found[place.name] = len(members)
    return [f"{name}.{i}" for name, n in found.items() for i in range(n)]

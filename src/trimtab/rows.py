"""Rows of a batch, each through its own adapter: grouped by adapter, computed, and put back in order."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .errors import AdapterError

if TYPE_CHECKING:
    from .blocks import BlockSite
    from .layer import AdapterLayer


def by_rows(layer: "AdapterLayer", rows: tuple[str, ...], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What a layer returns for a batch whose row i takes adapter `rows[i]`, "__base__" for none."""
    if not layer.site.pointwise:
        raise AdapterError(f"`adapter_names`: rows of {layer.path!r} cannot be told apart in a {layer.site.kind} layer")
    if x.shape[0] % len(rows):
        raise AdapterError(f"`adapter_names` has {len(rows)} names for a batch of {x.shape[0]} rows at {layer.path!r}")
    repeat = x.shape[0] // len(rows)
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, name in enumerate(rows):
        key = (name,) if name in layer.adapters else ()
        groups.setdefault(key, []).extend(range(i * repeat, (i + 1) * repeat))
    if len(groups) == 1:
        return layer.run(layer.plan(next(iter(groups))), x, *args, **kwargs)
    order = torch.tensor([i for g in groups.values() for i in g], device=x.device)
    sizes = [len(g) for g in groups.values()]

    def apart(run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What `run(plan, ...)` makes of each group's rows of some tensors, put back in order."""
        done = []
        parts = zip(*(t.index_select(0, order).split(sizes) for t in tensors), strict=True)
        for (names, group), held in zip(groups.items(), parts, strict=True):
            layer.router.index = torch.tensor(group[::repeat]) // repeat
            done.append(run(layer.plan(names), *held))
        layer.router.index = None
        return torch.cat(done).index_select(0, order.argsort())

    if layer.site.whole:  # called once for all rows: its other arguments cannot be split
        block = cast("BlockSite", layer.site)
        return block.around(partial(apart, layer.after), layer.base_layer, apart(layer.ahead, x), *args, **kwargs)
    return apart(lambda plan, part: layer.run(plan, part, *args, **kwargs), x)

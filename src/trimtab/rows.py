"""Rows of a batch, each through its own adapter: grouped by adapter, computed, and put back in order."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import AdapterError

if TYPE_CHECKING:
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
    y = layer.base_layer(x, *args, **kwargs) if layer.site.whole else None  # its other arguments cannot be split
    first = y[0] if isinstance(y, tuple) else y
    returned = [None] * len(sizes) if first is None else first.index_select(0, order).split(sizes)
    done = []
    for (names, group), part, out in zip(groups.items(), x.index_select(0, order).split(sizes), returned, strict=True):
        layer.router.index = torch.tensor(group[::repeat]) // repeat
        plan = layer.plan(names)
        done.append(layer.run(plan, part, *args, **kwargs) if out is None else layer.after(plan, part, out))
    layer.router.index = None
    result = torch.cat(done).index_select(0, order.argsort())
    return (result, *y[1:]) if isinstance(y, tuple) else result

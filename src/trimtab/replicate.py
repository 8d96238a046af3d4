"""`layer_replication`: ranges of a model's layers stacked; copies share weights and have adapters of their own."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from . import match
from .errors import ConfigError, listing


def replicate_layers(model: nn.Module, ranges: Sequence[Sequence[int]], adapted: bool) -> Callable[[], None]:
    """Stack ranges of the model's layers, in place: the copies share the weights, each can have adapters of its own.

    `ranges` are (start, end) pairs over the list of layers, end exclusive; `adapted`: adapters stand in the model.
    Returns what takes it back. Raises `ConfigError` where there is no one list of layers or a range leaves it, or where
    adapters stand in the model and its layers were not stacked so for them.
    """
    if getattr(model, "replicated_layers", None) == ranges:
        return lambda: None
    if adapted:
        raise ConfigError(f"`layer_replication`={ranges} would restack layers that hold adapters; load the base again")
    lists = [(p, p.module) for p in match.walk(model) if isinstance(p.module, nn.ModuleList) and len(p.module)]
    top = [(p, m) for p, m in lists if not any(p.name.startswith(q.name + ".") for q, _ in lists)]
    if len(top) != 1:
        raise ConfigError(
            "`layer_replication` needs a model with one list of layers; "
            f"this one has {listing(p.name for p, _ in top) or 'none'}"
        )
    place, layers = top[0]
    if wrong := [list(r) for r in ranges if len(r) != 2 or not 0 <= r[0] < r[1] <= len(layers)]:
        raise ConfigError(f"`layer_replication`: {listing(wrong)} are not ranges in a list of {len(layers)} layers")
    stacked = nn.ModuleList()
    for start, end in ranges:
        for i in range(start, end):
            shared = {id(t): t for t in (*layers[i].parameters(), *layers[i].buffers())}
            stacked.append(copy.deepcopy(layers[i], shared))
    for index, layer in enumerate(stacked):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010
    config: Any = getattr(model, "config", None)

    def put(these: nn.Module, count: int) -> None:
        place.parent._modules[place.key] = these
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = count

    def undo() -> None:
        put(layers, len(layers))
        del model.replicated_layers

    put(stacked, len(stacked))
    model.replicated_layers = ranges  # type: ignore[assignment]
    return undo

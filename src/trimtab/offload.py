"""Layers whose tensors Accelerate keeps elsewhere (CPU, disk) and brings in for a forward: read and written there.

Such a layer's own parameters are on the meta device; its hook knows where they are, and where the layer computes.
"""

from typing import Any

import torch
from torch import Tensor, nn


def hook_of(module: Any) -> Any:
    """The hook that brings a module's tensors in, or None."""
    outer = vars(module).get("_hf_hook")
    hooks = getattr(outer, "hooks", [outer])
    return next((h for h in hooks if getattr(h, "weights_map", None) is not None), None)


def get(module: Any, key: str) -> Any:
    """A module's tensor, from where it is kept; None where the module has none of that name."""
    held = getattr(module, key, None)
    if not isinstance(held, Tensor) or not held.is_meta or (hook := hook_of(module)) is None:
        return held
    return hook.weights_map[key].to(torch.device(hook.execution_device))


def put(module: Any, key: str, value: Tensor) -> None:
    """Replace a module's tensor, where it is kept."""
    held = getattr(module, key)
    if held is None or not held.is_meta or (hook := hook_of(module)) is None:
        setattr(module, key, value)
        return
    kept = hook.weights_map
    kept = getattr(kept.dataset, "state_dict", kept.dataset)  # of a folder, what is in memory comes first
    kept[hook.weights_map.prefix + key] = value.data if isinstance(value, nn.Parameter) else value

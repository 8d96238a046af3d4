"""The base model's own state by the names it had before any adapter, taken out of an adapted model or put into one."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .errors import BaseStateError, warn
from .inject import unwrapped
from .model import PeftModel
from .state import LoadResult


def _base_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    yield path, module
    for key, child in module._modules.items():
        if child is not None:
            yield from _base_modules(child, f"{path}{key}.")


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of the base model by its original names, whatever adapters and wrappers stand in it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found: dict[str, Tensor] = {}
    for path, module in _base_modules(base):
        module._save_to_state_dict(found, path, keep_vars=False)
    return found


@torch.no_grad()
def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> LoadResult:
    """Fill the base model from tensors by its original names; returns what was missing and what was left over.

    Raises `BaseStateError`, with all that does not fit and before anything is written; with `strict=False` only for
    tensors of another shape.
    """
    held = get_base_model_state_dict(model)
    result = LoadResult([k for k in held if k not in state_dict], [k for k in state_dict if k not in held])
    shapes = [k for k, t in state_dict.items() if k in held and held[k].shape != t.shape]
    wrong = [f"{k}: given {tuple(state_dict[k].shape)}, the model has {tuple(held[k].shape)}" for k in shapes]
    odd = [f"{k}: missing" for k in result.missing_keys] + [f"{k}: not in the model" for k in result.unexpected_keys]
    if shapes or (strict and odd):
        raise BaseStateError("this is not the base model's state: " + "; ".join([*wrong, *odd][:12]))
    if odd:
        warn("the base model's state is not complete: " + "; ".join(odd[:12]))
    for key, tensor in state_dict.items():
        if key in held:
            held[key].copy_(tensor)
    return result

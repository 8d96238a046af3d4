"""Helpers around a model: scale its adapters for a while, tell an adapter's folder, complete a signature."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import update_wrapper
from types import MethodType
from typing import Any

from torch import nn

from ..config import PeftConfig
from ..errors import AdapterError, ConfigError, TrimtabError
from ..match import adapter_layers
from ..methods.dora import DoraCaching
from ..methods.monteclora import MontecloraTrainerMixin

__all__ = [
    "DoraCaching", "MontecloraTrainerMixin", "check_if_peft_model", "disable_input_dtype_casting",
    "rescale_adapter_scale", "update_forward_signature", "update_generate_signature", "update_signature",
]  # fmt: skip


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Within it, the scale of every active adapter is multiplied by a number; 0 is the base model.

    Raises `ConfigError` for what is no number, `AdapterError` for a model without adapters.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)):
        raise ConfigError(f"`multiplier` must be a number, not a {type(multiplier).__name__}")
    layers = list(adapter_layers(model))
    if not layers:
        raise AdapterError("the model has no adapters whose scale could be changed")
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scale_layer(multiplier)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Within it, inputs are not cast to the number format of the adapters."""
    layers = list(adapter_layers(model)) if active else []
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = value


def check_if_peft_model(model_name_or_path: str) -> bool:
    """Whether a folder, or a repository on a hub, holds an adapter."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (TrimtabError, OSError):
        return False
    return True


def update_signature(model: Any, method: str = "all") -> None:
    """Let `inspect.signature` of the model's "forward", "generate" or "all" of them tell the base model's arguments."""
    if method not in ("forward", "generate", "all"):
        raise ConfigError(f"`method`={method!r} is unknown; choose 'forward', 'generate' or 'all'")
    for name in ("forward", "generate") if method == "all" else (method,):
        theirs = getattr(model.get_base_model(), name, None)
        if theirs is not None:
            setattr(model, name, _as(model, name, theirs))


def update_forward_signature(model: Any) -> None:
    """Let `inspect.signature(model.forward)` tell the base model's arguments."""
    update_signature(model, "forward")


def update_generate_signature(model: Any) -> None:
    """Let `inspect.signature(model.generate)` tell the base model's arguments."""
    update_signature(model, "generate")


def _as(model: Any, name: str, theirs: Any) -> MethodType:
    """The model's own method under the signature and documentation of another."""
    own = getattr(type(model), name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    update_wrapper(call, theirs.__func__ if hasattr(theirs, "__func__") else theirs)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([first, *inspect.signature(theirs).parameters.values()])  # type: ignore[attr-defined]
    return MethodType(call, model)

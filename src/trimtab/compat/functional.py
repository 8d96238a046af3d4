"""Functions on any model with adapter layers in it, also where no `PeftModel` stands around them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..api import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from ..face import as_list
from ..inject import (
    Request,
    check_name,
    plan_modules_to_save,
    plan_tokens,
    put_modules_to_save,
    put_tokens,
    router_of,
    switches,
)
from ..layer import AdapterLayer
from ..match import hits, in_layers
from ..method import method_of
from .faces import BaseTunerLayer

__all__ = [
    "cast_adapter_dtype", "check_adapters_to_merge", "check_target_module_exists", "delete_adapter",
    "get_peft_model_state_dict", "inject_adapter_in_model", "set_adapter", "set_peft_model_state_dict",
    "set_requires_grad",
]  # fmt: skip


def set_adapter(
    model: nn.Module,
    adapter_name: str | Sequence[str],
    inference_mode: bool = False,
    layer_cls: type = BaseTunerLayer,
) -> None:
    """Let these adapters act in every layer, in this order, and let exactly these be trained (none for inference)."""
    for layer in switches(model):
        if isinstance(layer, layer_cls) or not isinstance(layer, AdapterLayer):
            layer.set_adapter(adapter_name, inference_mode)


def delete_adapter(
    model: nn.Module, adapter_name: str, prefix: str, layer_cls: type = BaseTunerLayer
) -> list[str] | None:
    """Forget an adapter in every layer; returns those that act in its place. `prefix` is not needed and not read."""
    active = None
    for layer in switches(model):
        if isinstance(layer, layer_cls) or not isinstance(layer, AdapterLayer):
            layer.delete_adapter(adapter_name)
            active = active or layer.active_adapters
    return active


def set_requires_grad(model: nn.Module, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
    """Switch the gradients of these adapters on or off in every layer."""
    for layer in switches(model):
        layer.set_requires_grad(as_list(adapter_names), requires_grad)


def freeze_adapter(model: nn.Module, adapter_name: str) -> None:
    """Freeze all that is an adapter's."""
    set_requires_grad(model, adapter_name, False)


def set_additional_trainable_modules(
    model: nn.Module, peft_config: Any, model_config: Any, adapter_name: str, activate_adapter: bool = True
) -> None:
    """Put in, in place, what a configuration trains beside its method: modules in full, and rows of embeddings.

    `model_config` is not needed and not read. Raises `TargetError` before anything is changed.
    """
    check_name(model, adapter_name)
    tokens, modules = plan_tokens(model, peft_config), plan_modules_to_save(model, peft_config)
    router = router_of(model)
    put_tokens(tokens, Request(peft_config, adapter_name, method_of(peft_config)), router)
    put_modules_to_save(modules, adapter_name, router, peft_config.ensure_weight_tying)
    for place in [*(p for p, _, _ in tokens), *modules] if activate_adapter else ():
        wrapper: Any = place.parent._modules[place.key]
        getattr(wrapper, "token_adapter", wrapper).activate([adapter_name], not peft_config.inference_mode)


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Turn an adapter's half-precision tensors into float32."""
    if not autocast_adapter_dtype:
        return
    for layer in switches(model):
        if isinstance(layer, AdapterLayer):
            for _, parameter in layer.parameters_of(adapter_name):
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.to(torch.float32)


def check_target_module_exists(config: Any, key: str) -> bool:
    """Whether a configuration means the module at this path."""
    excluded = hits(key, config.exclude_modules)
    return not excluded and hits(key, config.target_modules) and in_layers(key, config)


def check_adapters_to_merge(module: AdapterLayer, adapter_names: Sequence[str] | None = None) -> list[str]:
    """Those of these adapters (the active ones by default) that are not merged into the layer yet."""
    names = module.active_adapters if adapter_names is None else list(adapter_names)
    return [n for n in names if n not in module.merged_adapters]

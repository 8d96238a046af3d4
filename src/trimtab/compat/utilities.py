"""Small functions that other people's code imports from `peft.utils`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config import CONFIGS, AdapterConfig, name_method
from ..errors import ConfigError
from ..method import METHODS, Method
from ..prompt_method import PROMPTS, VirtualTokens


def infer_device() -> str:
    """The kind of accelerator there is, or "cpu"."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def shift_tokens_right(input_ids: Tensor, pad_token_id: int | None, decoder_start_token_id: int) -> Tensor:
    """The inputs of a decoder for these labels (batch, length): one to the right, -100 turned into padding."""
    if pad_token_id is None:
        raise ConfigError("`pad_token_id` must be set: labels of -100 are turned into it")
    first = input_ids.new_full((len(input_ids), 1), decoder_start_token_id)
    shifted = torch.cat([first, input_ids[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """The weight, turned if it is stored as (in, out)."""
    if not fan_in_fan_out:
        return weight
    return nn.Parameter(weight.T) if isinstance(weight, nn.Parameter) else weight.T


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen parameters to a half-precision format and trained ones to float32, in place."""
    if dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"`dtype`={dtype} is no half-precision format; choose torch.float16 or torch.bfloat16")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """Parent, module and last name of the module at a path."""
    parent, _, name = key.rpartition(".")
    return model.get_submodule(parent), model.get_submodule(key), name


def map_cache_to_layer_device_map(model: Any, cache: Any) -> None:
    """Move the keys and values in a cache to the devices of their layers, where a model is spread over several."""
    for path, device in (getattr(model, "hf_device_map", None) or {}).items():
        index = next((int(part) for part in path.split(".") if part.isdigit()), None)
        for layer in [] if index is None else cache.layers[index : index + 1]:
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)


def bloom_model_postprocess_past_key_value(past_key_values: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], ...]:
    """A prefix as versions of Bloom before Transformers' caches took it: (B * h, d, n) and (B * h, n, d) a layer.

    `past_key_values`: in one piece or several, (2 * layers, B, h, n, d), all keys first; the axes h and n of keys are
    exchanged, as prefixes were trained. Nothing here needs it.
    """
    keys, values = torch.cat(past_key_values).chunk(2)
    _, rows, heads, tokens, dim = keys.shape
    keys = keys.transpose(2, 3).reshape(-1, rows * heads, dim, tokens)
    return tuple(zip(keys, values.reshape(-1, rows * heads, tokens, dim), strict=True))


def register_peft_method(
    *, name: str, config_cls: type[Any], model_cls: type[Any], prefix: str | None = None, **kwargs: Any
) -> None:
    """Register a method that did not do so itself: its configuration, and in place of a model its `Method`.

    Methods mix with all others, whatever `is_mixed_compatible` says. Raises `ConfigError` for what is no `Method`, and
    for a name that is taken.
    """
    kind, wrong = name.upper(), []
    if not issubclass(model_cls, Method):
        wrong.append(f"`model_cls`={model_cls.__name__} must be a trimtab.Method: one equation, for all layers")
    if not issubclass(config_cls, AdapterConfig):
        wrong.append(f"`config_cls`={config_cls.__name__} must be a trimtab.AdapterConfig")
    if kind in METHODS or kind in PROMPTS:
        wrong.append(f"there is a method {name!r} already")
    if wrong:
        raise ConfigError("; ".join(wrong))
    name_method(kind)
    config_cls.kind, CONFIGS[kind] = kind, config_cls
    type(model_cls.__name__, (model_cls,), {"name": kind, "prefix": prefix or f"{name}_"})  # registers itself


def id_tensor_storage(tensor: Tensor) -> tuple[torch.device, int, int]:
    """Device, address and size of a tensor's storage: equal for tensors that share it, as long as both live."""
    storage = tensor.untyped_storage()
    return tensor.device, storage.data_ptr(), storage.nbytes()


def fsdp_auto_wrap_policy(model: nn.Module) -> Callable[..., bool]:
    """A policy for FSDP: transformer blocks, prompts and trained leaves are units of their own."""
    from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy, transformer_auto_wrap_policy

    names = set(getattr(model, "_no_split_modules", None) or [])
    blocks: set[Any] = {type(m) for m in model.modules() if type(m).__name__ in names} | {VirtualTokens}

    def trained_leaf(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return not any(module.children()) and weight is not None and weight.requires_grad

    policies = [
        partial(lambda_auto_wrap_policy, lambda_fn=trained_leaf),
        partial(transformer_auto_wrap_policy, transformer_layer_cls=blocks),
    ]
    return partial(_or_policy, policies=policies)

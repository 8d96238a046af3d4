"""Functions on models that are no `PeftModel`: injecting adapters, their state, preparing a base for training."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import inject, prompt_state, state
from .config import CONFIGS, AdapterConfig, PeftConfig
from .errors import AdapterError, ConfigError, listing
from .files import find
from .model import PeftModel
from .save import read
from .sites import is_quantized
from .state import LoadResult


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put an adapter into a model in place and return that same model; there is no wrapper around it.

    `state_dict`: adapt only the modules these tensors belong to. `model.peft_config` holds the configurations. Raises
    `ConfigError` for prompt methods, which need a `PeftModel`.
    """
    if not isinstance(peft_config, AdapterConfig):
        raise ConfigError(
            f"{type(peft_config).__name__} cannot be injected: prompts act around a model; use get_peft_model"
        )
    inject.inject(model, peft_config, adapter_name, empty=low_cpu_mem_usage, state_dict=state_dict)
    configs = model.__dict__.setdefault("peft_config", {})
    configs[adapter_name] = peft_config
    for layer in inject.switches(model):
        layer.activate([adapter_name], trainable=not peft_config.inference_mode)
    return model


def _parts(model: nn.Module, adapter_name: str) -> tuple[nn.Module, AdapterConfig, str]:
    """The module whose paths file keys are made of, the adapter's configuration, and the keys' first part."""
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if adapter_name not in configs:
        raise AdapterError(f"no adapter is called {adapter_name!r}; there are {listing(configs) or 'none'}")
    if isinstance(model, PeftModel):
        return model.base_model, configs[adapter_name], "base_model."
    return model, configs[adapter_name], ""


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """The tensors of an adapter by their keys in a file.

    `state_dict`: whole tensors by their names in memory, to take instead of the model's (from a sharded model).
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    if isinstance(model, PeftModel) and model.is_prompt_learning:
        return prompt_state.state(model, adapter_name)
    root, cfg, prefix = _parts(model, adapter_name)
    return state.adapter_state(root, adapter_name, cfg, prefix, save_embedding_layers is True, state_dict)


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
    strict: bool | None = None,
) -> LoadResult:
    """Fill an adapter from tensors by their keys in a file; see `PeftModel.load_adapter` for `strict`.

    `ignore_mismatched_sizes` leaves out tensors of another shape with a warning. Raises `AdapterFileError`.
    """
    strict = (state.STRICT.on if strict is None else strict) and not ignore_mismatched_sizes
    if isinstance(model, PeftModel) and model.is_prompt_learning:
        return prompt_state.load(model, adapter_name, dict(peft_model_state_dict), strict)
    root, cfg, prefix = _parts(model, adapter_name)
    return state.load_state(root, adapter_name, cfg, peft_model_state_dict, prefix, strict)


def load_peft_weights(
    model_id: str, device: str | None = None, key_mapping: dict[str, str] | None = None, **hub: Any
) -> dict[str, Tensor]:
    """The tensors of an adapter's file, from a folder or hub repository, on `device`."""
    tensors, _ = read(find(model_id, state.WEIGHTS_NAME, hub.pop("subfolder", None), **hub), key_mapping)
    return {k: t.to(device) for k, t in tensors.items()} if device else tensors


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """The configuration that a dictionary with a `peft_type` describes. Raises `ConfigError` for a type not offered."""
    if config_dict.get("peft_type") not in CONFIGS:
        raise ConfigError(
            f"`peft_type`={config_dict.get('peft_type')!r} is not offered; there are {listing(sorted(CONFIGS), 50)}"
        )
    return PeftConfig.from_dict(config_dict)


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Make a quantised base model ready for adapters, in place, and return it.

    All parameters are frozen, and those still in half precision (norms, heads, biases) become float32; what a weight is
    stored as stays. A quantised model then recomputes activations (`use_gradient_checkpointing`), by default without
    `use_reentrant`. With it, the embeddings' output is made to require gradients: nothing below the first checkpoint
    would train otherwise. Raises `ConfigError` for a model that cannot recompute, before anything is changed.
    """
    stored = {id(p) for m in model.modules() if is_quantized(m) for k, p in m._parameters.items() if k != "bias"}
    flags = ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method")
    checkpoint = use_gradient_checkpointing and (bool(stored) or any(getattr(model, f, False) for f in flags))
    if checkpoint and not hasattr(model, "gradient_checkpointing_enable"):
        raise ConfigError(
            f"{type(model).__name__} has no `gradient_checkpointing_enable`; pass `use_gradient_checkpointing=False`"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and id(parameter) not in stored:
            parameter.data = parameter.data.to(torch.float32)
    if not checkpoint:
        return model
    options = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
    anything = cast(Any, model)
    if options["use_reentrant"]:
        require_input_gradients(anything)
    anything.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if auto_clear_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model


def require_input_gradients(model: Any) -> None:
    """Make the output of a model's input embeddings require gradients."""
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
    else:
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))

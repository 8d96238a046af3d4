"""Another adapter's values under the same name, in place: a compiled model sees nothing change but numbers.

Of a method whose update is a product B A (LoRA) the new adapter may have a smaller rank, another scale and fewer
layers: ranks are filled up with zeros, the ratio of the scales goes into B, and a layer that it lacks gets B = 0.
Adapters of other methods are exchanged tensor by tensor.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .config import AdapterConfig, PeftConfig
from .errors import AdapterError, AdapterFileError, listing, warn
from .files import find
from .layer import AdapterLayer
from .match import adapter_layers, modules
from .method import Adapter, method_of
from .model import PeftModel
from .save import read
from .signs import METADATA_KEY, Signs
from .state import WEIGHTS_NAME, load_state

SAME = ("use_rslora", "use_dora", "lora_bias", "bias", "use_qalora", "alora_invocation_tokens")
"""Options that change what the tensors mean, so that they have to be equal."""


def hotswap_adapter(
    model: nn.Module, model_name_or_path: str | Path, adapter_name: str, torch_device: str | None = None, **kwargs: Any
) -> None:
    """Give adapter `adapter_name` the values of the one in a folder or hub repository.

    Args:
        model: a `PeftModel`, or any model with adapter layers; it may be compiled.
        model_name_or_path: where the new adapter is.
        adapter_name: the adapter whose values are replaced; the name stays.
        torch_device: where to read the tensors to; they end on the device of those that they replace.
        kwargs: options of the hub's download.

    Raises `AdapterError` or `AdapterFileError`, with all that does not fit, before anything is changed.
    """
    model = getattr(model, "_orig_mod", model)
    config = PeftConfig.from_pretrained(model_name_or_path, **kwargs)
    tensors, metadata = read(find(model_name_or_path, WEIGHTS_NAME, kwargs.pop("subfolder", None), **kwargs))
    if torch_device is not None:
        tensors = {k: t.to(torch_device) for k, t in tensors.items()}
    root = "base_model." if isinstance(model, PeftModel) else ""
    if not root:
        tensors = {k.removeprefix("base_model.model."): t for k, t in tensors.items()}
    signs = Signs(model, adapter_name, metadata.get(METADATA_KEY, "{}"))
    signs.check(strict=True)
    hotswap_adapter_from_state_dict(model, tensors, adapter_name, config)
    signs.turn()


@torch.no_grad()
def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    adapter_name: str,
    config: PeftConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """Give adapter `adapter_name` these values, by their keys in a file; `config` says what they mean.

    `parameter_prefix` is not needed and not read. Raises as `hotswap_adapter` does.
    """
    model = getattr(model, "_orig_mod", model)
    old: Any = (getattr(model, "peft_config", None) or {}).get(adapter_name)
    if not isinstance(old, AdapterConfig):
        raise AdapterError(f"the model has no weight adapter {adapter_name!r} whose values could be swapped")
    check_hotswap_configs_compatible(old, config)
    root = "base_model." if isinstance(model, PeftModel) else ""
    base: nn.Module = model.base_model if isinstance(model, PeftModel) else model
    if merged := [layer.path for layer in adapter_layers(base) if adapter_name in layer.merged_adapters]:
        raise AdapterError(f"{adapter_name!r} is merged into {listing(merged)}; unmerge before swapping it")
    if method_of(old).product:
        state_dict = _fitted(base, adapter_name, config, dict(state_dict), root)
    load_state(base, adapter_name, old, state_dict, root)


def _fitted(base: nn.Module, name: str, config: Any, tensors: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """The new adapter's tensors in the ranks, scales and layers of the adapter that is in the model."""
    wrong: list[str] = []
    for path, layer in modules(base):
        a = layer.adapters.get(name) if isinstance(layer, AdapterLayer) and not layer.follows else None
        if a is None or a.follows or not a.method.product:
            continue
        keys = [f"{root}{path}.{a.slots[slot].key}" for slot in a.method.product]
        held = [a.tensor(slot) for slot in a.method.product]
        given = [tensors.get(key) for key in keys]
        if given[0] is None or given[1] is None:
            if extra := sorted(a.slots.keys() - set(a.method.product)):
                wrong.append(f"{a.layer.path}: the new adapter lacks it, and {listing(extra)} cannot be left out")
            tensors |= {key: torch.zeros_like(t) for key, t in zip(keys, held, strict=True)}
            continue
        given[1] = given[1] * (a.method.scaling(a.site, config.at(a.layer.path)) / a.scale)
        if _apart(a) and given[0].shape != held[0].shape:
            wrong.append(f"{a.layer.path}: ranks of experts and of grouped layers have to be the same")
        pair = [_filled(t, like) for t, like in zip(given, held, strict=True) if t is not None]
        if any(t is None for t in pair):
            wrong.append(f"{a.layer.path}: rank {len(given[0])}, and the model has room for {len(held[0])}")
        tensors |= {k: t for k, t in zip(keys, pair, strict=True) if t is not None}
    if wrong:
        raise AdapterFileError(f"{name!r} cannot be swapped, nothing was changed: " + "; ".join(wrong[:8]))
    return tensors


def _filled(t: Tensor, like: Tensor) -> Tensor | None:
    """A factor with zeros up to the size of the one in the model, or None where it is larger."""
    if t.dim() != like.dim() or any(n > m for n, m in zip(t.shape, like.shape, strict=True)):
        return None
    full = t.new_zeros(like.shape)
    full[tuple(slice(n) for n in t.shape)] = t
    return full


def check_hotswap_configs_compatible(config0: PeftConfig, config1: PeftConfig) -> None:
    """Raise `AdapterError` when adapters of these two configurations cannot take each other's place."""
    if config0.kind != config1.kind:
        raise AdapterError(f"a {config0.kind} adapter cannot be swapped for one of {config1.kind}")
    options = [o for o in SAME if getattr(config0, o, None) != getattr(config1, o, None)]
    if not method_of(config0).product:  # type: ignore[arg-type]
        names = config0.__dataclass_fields__.keys() - PeftConfig.__dataclass_fields__.keys()
        options = [o for o in sorted(names) if getattr(config0, o) != getattr(config1, o) and "modules" not in o]
    if options:
        raise AdapterError(f"adapters cannot be swapped that differ in {listing(options)}")


@torch.no_grad()
def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: AdapterConfig | dict[str, AdapterConfig] | None = None,
    check_compiled: Literal["error", "warn", "ignore"] = "error",
) -> None:
    """Make room for adapters of up to `target_rank`, before the model is compiled; outputs stay the same.

    Scales need no preparation here: a swapped adapter's goes into its tensors. `config`, one or by adapter name, is set
    to the new rank too. Raises `AdapterError` for a compiled model (see `check_compiled`) and for one without adapters.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        text = "the model is compiled already; prepare it before torch.compile, or every swap compiles it anew"
        if check_compiled == "error":
            raise AdapterError(text)
        if check_compiled == "warn":
            warn(text)
    layers = list(adapter_layers(getattr(model, "_orig_mod", model)))
    if not layers:
        raise AdapterError("the model has no adapter layers to prepare for swapping")
    if target_rank is None:
        return
    found = [a for layer in layers for a in layer.adapters.values() if a.method.product]
    if apart := [a.layer.path for a in found if _apart(a)]:
        raise AdapterError(f"ranks of experts and of grouped layers are kept apart and cannot grow: {listing(apart)}")
    if larger := [f"{a.layer.path} ({_rank(a)})" for a in found if _rank(a) > target_rank]:
        raise AdapterError(f"`target_rank`={target_rank} is less than there is: {listing(larger)}")
    given = config if isinstance(config, dict) else dict.fromkeys([a.name for a in found], config)
    held: dict[str, Any] = getattr(model, "peft_config", None) or {}
    for name in dict.fromkeys(a.name for a in found):
        mine = [a for a in found if a.name == name]
        for a in mine:
            _widen(a, target_rank)
        for cfg in {id(c): c for c in (given.get(name), held.get(name)) if c is not None}.values():
            _note_ranks(cfg, {a.layer.path: a.cfg for a in mine})


def _rank(a: Adapter) -> int:
    return int(getattr(a.cfg, a.cfg.rank_field))


def _apart(a: Adapter) -> bool:
    """Whether a factor holds several ranks side by side, of experts or groups."""
    down, up = (a.slots[slot].shape for slot in a.method.product)
    return not down[0] == up[1] == _rank(a)


def _widen(a: Adapter, rank: int) -> None:
    """Fill an adapter's factors up to a rank, and set its options so that they mean what they did."""
    scale, option = a.method.scaling(a.site, a.cfg), a.cfg.alpha_field
    a.cfg = replace(a.cfg, **{a.cfg.rank_field: rank, "rank_pattern": {}})
    setattr(a.cfg, option, getattr(a.cfg, option) * scale / a.method.scaling(a.site, a.cfg))
    old = {slot: a.tensor(slot) for slot in a.method.product}
    a.slots = a.method.slots(a.site, a.cfg)
    for key, tensor in old.items():
        slot = a.slots[key]
        full = tensor.new_zeros(slot.shape)
        full[tuple(slice(n) for n in tensor.shape)] = tensor
        owner, part = a.layer.holder(slot, a.name)
        owner._parameters[part] = nn.Parameter(full, requires_grad=tensor.requires_grad)
        if isinstance(owner, nn.Linear):
            owner.out_features, owner.in_features = slot.shape


def _note_ranks(cfg: Any, layers: Mapping[str, Any]) -> None:
    """Write into a configuration what its layers' own say: one rank, and each alpha that is not the most frequent."""
    alphas = {path: getattr(c, c.alpha_field) for path, c in layers.items()}
    usual = max(set(alphas.values()), key=list(alphas.values()).count)
    setattr(cfg, cfg.rank_field, getattr(next(iter(layers.values())), cfg.rank_field))
    setattr(cfg, cfg.alpha_field, usual)
    cfg.rank_pattern = {}
    cfg.alpha_pattern = {re.escape(path): alpha for path, alpha in alphas.items() if alpha != usual}

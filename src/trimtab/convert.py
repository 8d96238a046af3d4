"""Any adapter whose effect is a weight as a LoRA adapter of a chosen rank, with the error that this rank leaves.

The update W' - W is cut down to its largest singular values (Eckart and Young): no LoRA of that rank is nearer. A LoRA
adapter so becomes one of smaller rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .combine import shortest_targets
from .config import AdapterConfig
from .errors import ConfigError, ConversionError, listing
from .layer import AdapterLayer
from .match import adapter_layers, modules
from .method import METHODS, method_of
from .methods.lora import LoraConfig
from .model import PeftModel
from .save import write_adapter
from .state import adapter_state, shared_entries
from .tuner import progress


class Conversion(tuple[LoraConfig, dict[str, Tensor]]):
    """Configuration and tensors of the LoRA adapter; `errors` holds |W' - W - s B A| / |W' - W| by layer path."""

    errors: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest relative error of any layer."""
        return max(self.errors.values(), default=0.0)


@dataclass
class Part:
    """One layer's update as factors A (experts, r, in) and B (experts, out, r), and what it adds to the bias."""

    layer: AdapterLayer
    A: Tensor
    B: Tensor
    bias: Tensor | None
    error: float


@torch.no_grad()
def convert_to_lora(
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> Conversion:
    """The LoRA adapter nearest to adapter `adapter_name`, whatever its method; the model is not changed.

    Args:
        model: a model with adapter layers.
        rank: an integer, the rank in every layer; or a number in (0, 1], the share of the squared singular values that
            each layer's rank is to hold.
        adapter_name: which adapter.
        progressbar: show one, where `tqdm` is installed.
        compile_kwargs: options of `torch.compile` for the decomposition; None: run it as it is.

    Raises `ConversionError` with everything that has no equivalent of this rank. It is both the `TypeError` and the
    `ValueError` that Hugging Face PEFT raises.
    """
    cfg: Any = (getattr(model, "peft_config", None) or {}).get(adapter_name)
    layers = [layer for layer in adapter_layers(model) if adapter_name in layer.adapters]
    if cfg is None or not layers:
        raise ConversionError(f"the model has no adapter layers of {adapter_name!r} to convert")
    method = method_of(cfg)
    layers = [layer for layer in layers if layer.adapters[adapter_name].method is method]  # others are kept as they are
    if wrong := [*_wrong_rank(rank), *_obstacles(layers, adapter_name, rank, cfg)]:
        raise ConversionError(f"{adapter_name!r} cannot become LoRA of rank {rank}: " + "; ".join(wrong[:8]))
    cut: Callable[..., Any] = torch.compile(_cut, **compile_kwargs) if compile_kwargs is not None else _cut
    parts = [_part(layer, adapter_name, rank, cut) for layer in (progress(layers) if progressbar else layers)]
    done = _assembled(model, adapter_name, cfg, parts)
    done.errors = {p.layer.path: p.error for p in parts}
    return done


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> Conversion:
    """Write adapter `adapter_name` as LoRA into a folder; see `convert_to_lora`, whose result is returned."""
    done = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    fingerprint = model.fingerprint if isinstance(model, PeftModel) else None
    write_adapter(Path(path), *done, fingerprint)
    return done


def _wrong_rank(rank: float) -> list[str]:
    if isinstance(rank, int) and rank < 1:
        return [f"a rank of {rank} makes no sense; it must be at least 1"]
    if isinstance(rank, float) and not 0 < rank <= 1:
        return [f"`rank`={rank} is a share of the squared singular values and must be between 0 and 1"]
    return []


def _obstacles(layers: list[AdapterLayer], name: str, rank: float, cfg: AdapterConfig) -> list[str]:
    wrong = []
    if method_of(cfg).changes_base(cfg):
        wrong.append("it began by changing the base weight, and its update is relative to that")
    for layer in layers:
        site = layer.site
        if why := layer.adapters[name].depends:
            wrong.append(f"{layer.path}: its effect depends on {why}")
        elif layer.merged_adapters:
            wrong.append(f"{layer.path}: {listing(layer.merged_adapters)} is merged; unmerge first")
        elif len(site.shape) < 2 or getattr(site, "groups", 1) > 1:
            wrong.append(f"{layer.path}: the weight of a {site.kind} layer of shape {site.shape} is no one matrix")
        elif isinstance(rank, int) and rank > (most := min(site.matrix[-2:])):
            wrong.append(f"{layer.path}: rank {rank} is larger than its weight allows ({most})")
    return wrong


def _part(layer: AdapterLayer, name: str, rank: float, cut: Callable[..., Any]) -> Part:
    site = layer.site
    dtype = torch.promote_types(site.dtype, torch.float32)
    a = layer.adapters[name].to(dtype)
    w = site.weight().detach().to(dtype)
    b = None if site.bias is None else site.bias.detach().to(dtype)
    update = (a.method.weight(w, a) - w).view(-1, *site.matrix[-2:])
    new = a.method.bias(b, a)
    shift = None if new is None else new if b is None else new - b
    u, s, v = cut(update)
    r = rank if isinstance(rank, int) else _rank_for(s, rank)
    up, down = u[..., :r] * s[:, None, :r].sqrt(), s[:, :r, None].sqrt() * v[:, :r]
    error = (update - up @ down).norm() / update.norm().clamp(min=torch.finfo(dtype).tiny)
    return Part(layer, down, up, shift if shift is not None and shift.any() else None, float(error))


def _cut(update: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(update, full_matrices=False)


def _rank_for(s: Tensor, share: float) -> int:
    """The smallest rank whose squared singular values, (experts, n), are this share of all of them in every expert."""
    held = s.square().cumsum(-1) / s.square().sum(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
    return int((held < share - 1e-6).sum(-1).max().clamp(max=s.shape[-1] - 1)) + 1


def _assembled(model: nn.Module, name: str, old: AdapterConfig, parts: list[Part]) -> Conversion:
    root = "base_model." if isinstance(model, PeftModel) else ""
    base: nn.Module = model.base_model if isinstance(model, PeftModel) else model
    ranks = {p.layer.path: p.A.shape[1] for p in parts}
    experts = [p.layer.path for p in parts if p.layer.site.kind == "parameter"]
    plain = LoraConfig(
        task_type=old.task_type, base_model_name_or_path=old.base_model_name_or_path, revision=old.revision,
        auto_mapping=old.auto_mapping, modules_to_save=old.modules_to_save, inference_mode=old.inference_mode,
        target_modules=shortest_targets(base, [p.layer for p in parts]), target_parameters=experts or None,
        trainable_token_indices=old.trainable_token_indices, lora_bias=any(p.bias is not None for p in parts),
    )  # fmt: skip
    lora = METHODS[plain.kind]
    cfg = lora.with_ranks(plain, ranks)
    where = {id(module): path for path, module in modules(base)}
    state = {}
    for part in parts:
        for key, tensor in _tensors(part, cfg.at(part.layer.path)):
            state[f"{root}{where[id(part.layer)]}.{key}"] = tensor
    converted = tuple(f"{root}{where[id(p.layer)]}." for p in parts)
    shared = shared_entries(base, name, root)
    every = adapter_state(base, name, old, root)
    others = {k: t for k, t in every.items() if not k.startswith(converted) and k not in shared}
    return Conversion((cfg, state | others))


def _tensors(part: Part, cfg: LoraConfig) -> Iterator[tuple[str, Tensor]]:
    """File key below the layer's, and tensor, of each of LoRA's slots."""
    site, lora = part.layer.site, METHODS[cfg.kind]
    scale = lora.scaling(site, cfg)
    values = {"A": part.A / scale, "B": part.B.permute(1, 2, 0), "B_bias": part.bias}
    try:
        slots = lora.slots(site, cfg)
    except ConfigError as error:
        raise ConversionError(f"{part.layer.path}: the adapter changes the bias of some layers, and {error}") from error
    for name, slot in slots.items():
        value = values[name]
        held = torch.zeros(slot.shape) if value is None else value / scale if name == "B_bias" else value
        yield slot.key, held.reshape(slot.shape).contiguous()

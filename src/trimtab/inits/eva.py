"""EVA (https://arxiv.org/abs/2410.07170): A = the directions in which the inputs of a layer vary most.

All layers share the ranks: taken are those directions that explain the largest share of their layer's variance, r for
each layer on average and at most rho r for one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..combine import shortest_targets
from ..errors import AdapterError, ConfigError, listing
from ..layer import AdapterLayer
from ..match import modules
from ..method import Start
from ..methods.options import Options
from ..model import PeftModel
from ..tuner import progress
from ..watch import evaluating
from .data import linear_layers, looking, options_of
from .directions import Directions, Prepare, Search, endless, placed


@dataclass(kw_only=True)
class EvaConfig(Options, field="eva_config"):
    """How directions are found and shared out."""

    start = "eva"

    rho: float = 2.0  # how many times r a layer may have
    tau: float = 0.99  # cosine of a direction before and after a batch, from which on it counts as settled
    use_label_mask: bool = True  # leave out tokens without a label
    label_mask_value: int = -100  # what such tokens have for a label
    whiten: bool = False  # divide each direction by the root of its singular value
    adjust_scaling_factors: bool = True  # let alpha grow with a layer's rank

    def mistakes(self) -> list[str]:
        checks = {
            f"`rho`={self.rho} must be at least 1": self.rho >= 1,
            f"`tau`={self.tau} must be at least 0 and below 1": 0 <= self.tau < 1,
        }
        return [text for text, fine in checks.items() if not fine]


class Eva(Start):
    """See the head of this file. An adapter begins as usual, until `initialize_lora_eva_weights` is called."""

    name = "eva"

    def __call__(self, a: Any, option: str) -> None:
        """Nothing: there is no data yet."""


def forward_fn_dict(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a batch, a dictionary of arguments."""
    return model(**inputs)


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: Any) -> Tensor | None:
    """Which tokens of a batch count, (batch, tokens): those with a label, or that are no padding; None for all."""
    if not isinstance(model_input, Mapping):
        return None
    options = peft_config.eva_config
    if options.use_label_mask and model_input.get("labels") is not None:
        return model_input["labels"] != options.label_mask_value
    mask = model_input.get("attention_mask")
    return None if mask is None else mask.bool()


def prepare_layer_inputs_fn_language_modeling(layer_input: Tensor, model_input: Any, layer_name: str) -> Tensor:
    """The rows (rows, in) of a layer's input that count."""
    return layer_input.flatten(0, -2) if model_input is None else layer_input[model_input.to(layer_input.device)]


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: Any = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Prepare | Mapping[str, Prepare] | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """The directions (rank, in) with which each layer's A is to begin, by the layer's path in `model`.

    Args:
        model: a `PeftModel`, or a base model.
        dataloader: batches; gone through until all directions have settled, again and again if need be.
        peft_config: the LoRA configuration, for a base model.
        forward_fn: runs the model on a batch.
        prepare_model_inputs_fn: what the next function is told of a batch; by default, which tokens count.
        prepare_layer_inputs_fn: makes the rows (rows, in) to look at of a layer's input, of what was prepared and of
            the layer's path; one for all, or one for each path. None takes every row.
        adapter_name: the adapter, of a `PeftModel`.
        gather_distributed_inputs: look at the inputs of all processes.
        show_progress_bar: show one, where `tqdm` is installed.

    Raises `ConfigError` or `AdapterError` when there is nothing to look at.
    """
    cfg, layers = _looked_at(model, peft_config, adapter_name)
    options: EvaConfig = cfg.eva_config
    ranks = {name: cfg.at(getattr(layer, "path", name)).r for name, layer in layers.items()}
    directions = {name: Directions(int(options.rho * r), options.tau) for name, r in ranks.items()}
    search = Search(directions, sum(ranks.values()), prepare_layer_inputs_fn, gather_distributed_inputs)
    device = next(model.parameters()).device
    with looking(layers, search.look), evaluating(model):
        for batch in progress(endless(dataloader), "EVA") if show_progress_bar else endless(dataloader):
            batch = placed(batch, device)
            search.begin(prepare_model_inputs_fn(batch, cfg) if prepare_model_inputs_fn is not None else None)
            forward_fn(model, batch)
            if search.settled():
                break
    taken = search.ranks
    whole = {name: d.v / d.s.sqrt()[:, None] if options.whiten else d.v for name, d in search.found.items()}
    return {name: rows[: taken[name]].clone() for name, rows in whole.items()}


def _looked_at(model: nn.Module, cfg: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """The configuration, and the layers that EVA looks at, by their paths in `model`."""
    if not isinstance(model, PeftModel):
        if cfg is None:
            raise ConfigError("`peft_config` is needed for a model that has no adapters")
        options_of(cfg, "eva_config", "eva")
        return cfg, linear_layers(model, cfg)
    if name not in model.peft_config:
        raise AdapterError(f"no adapter is called {name!r}; there are {listing(model.peft_config)}")
    options_of(model.peft_config[name], "eva_config", "eva")
    held = {path: m for path, m in modules(model) if isinstance(m, AdapterLayer) and name in m.adapters}
    return model.peft_config[name], {path: m for path, m in held.items() if m.site.kind == "linear"}


@torch.no_grad()
def initialize_lora_eva_weights(
    model: PeftModel,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Prepare | Mapping[str, Prepare] | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> PeftModel:
    """Begin an adapter by EVA, in place: layers get the ranks that were found, and a layer without any is left alone.

    Args:
        model: a model whose adapter has `init_lora_weights="eva"`.
        dataloader: data to look at; not needed with `eva_state_dict`.
        eva_state_dict: what `get_eva_state_dict` has returned; layers that are not in it stay as they are.
        forward_fn: this and all others are those of `get_eva_state_dict`.
        prepare_model_inputs_fn: likewise.
        prepare_layer_inputs_fn: likewise.
        adapter_name: likewise.
        gather_distributed_inputs: likewise.
        show_progress_bar: likewise.

    Raises `ConfigError` or `AdapterError` before anything is changed.
    """
    if not isinstance(model, PeftModel):
        raise AdapterError(f"a {type(model).__name__} has no adapters to begin; call get_peft_model first")
    cfg, layers = _looked_at(model, None, adapter_name)
    if eva_state_dict is None:
        if dataloader is None:
            raise ConfigError("EVA needs data: pass `dataloader`, or `eva_state_dict` from get_eva_state_dict")
        eva_state_dict = get_eva_state_dict(
            model, dataloader, None, forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn, adapter_name,
            gather_distributed_inputs, show_progress_bar,
        )  # fmt: skip
    if unknown := sorted(eva_state_dict.keys() - layers.keys()):
        raise AdapterError(f"`eva_state_dict` means {listing(unknown)}, where {adapter_name!r} has no linear layer")
    _note_ranks(model, cfg, {layers[name]: len(rows) for name, rows in eva_state_dict.items()}, adapter_name)
    for name, rows in eva_state_dict.items():
        _begin(layers[name], adapter_name, cfg, rows)
    model.base_model._owned.pop(adapter_name, None)
    return model


def _note_ranks(model: PeftModel, cfg: Any, ranks: Mapping[AdapterLayer, int], name: str) -> None:
    """Write the ranks of layers, and their alphas, into the configuration."""
    usual = {layer: cfg.at(layer.path) for layer in ranks}
    alphas = {}
    for layer, r in ranks.items():
        alpha = usual[layer].lora_alpha
        alphas[layer.path] = alpha * r / usual[layer].r if cfg.eva_config.adjust_scaling_factors else alpha
    old = cfg.rank_pattern or {}, cfg.alpha_pattern or {}
    kept = {layer.path: r for layer, r in ranks.items() if r and (r != cfg.r or old[0])}
    cfg.rank_pattern = {**kept, **{k: v for k, v in old[0].items() if k not in kept}}
    scaled = {path: alpha for path, alpha in alphas.items() if alpha and (alpha != cfg.lora_alpha or old[1])}
    cfg.alpha_pattern = {**scaled, **{k: v for k, v in old[1].items() if k not in scaled}}
    if not all(ranks.values()):
        every = [layer for layer in model.base_model.layers if name in layer.adapters and ranks.get(layer, 1)]
        cfg.target_modules = shortest_targets(model.get_base_model(), every)


def _begin(layer: AdapterLayer, name: str, cfg: Any, rows: Tensor) -> None:
    """Give a layer's adapter these rows for an A, and their number for a rank."""
    old: Any = layer.adapters[name]
    active, trained, full = layer.active, old.A.requires_grad, old.dtype == torch.float32
    layer.remove(name)
    if not len(rows):
        return
    here = cfg.at(layer.path)
    layer.add(name, old.method, here, old.method.slots(layer.site, here), {}, autocast=full)
    new: Any = layer.adapters[name]
    old.method.derive(new)
    old.method.start(new)
    new.A.copy_(rows)
    layer.activate(active)
    layer.train_adapter(name, trained)

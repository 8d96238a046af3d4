"""Intruder dimensions (https://arxiv.org/abs/2410.21228): take back what a LoRA adapter has put where W had nothing.

An intruder is one of the first left singular vectors u_i of W' = W + s B A that has a cosine below epsilon to every one
of W. The adapter that is left is the nearest of rank r to s B A + (lambda - 1) sum_i u_i s_i v_i.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .errors import AdapterError, ConfigError, listing
from .layer import AdapterLayer
from .methods.lora import Lora, LoraConfig
from .model import PeftModel
from .state import adapter_state, load_state


@torch.no_grad()
def reduce_intruder_dimension(
    peft_model: PeftModel,
    old_adapter_name: str = "default",
    new_adapter_name: str = "intruder_reduced",
    top_k: int = 10,
    threshold_epsilon: float = 0.5,
    mitigation_lambda: float = 0.75,
    logging_sink: Callable[[str], object] | None = print,
) -> None:
    """Make a LoRA adapter from another, with its intruders weakened, and let it act.

    Args:
        peft_model: a model with a LoRA adapter.
        old_adapter_name: the adapter, which stays as it is.
        new_adapter_name: the name of the new one.
        top_k: how many of the largest singular values of W' are looked at.
        threshold_epsilon: an intruder's cosine to every singular vector of W is below this.
        mitigation_lambda: the share of an intruder that is left: 1 changes nothing, 0 takes it out.
        logging_sink: told what was found in each layer; None for nobody.

    Raises `ConfigError` or `AdapterError` with nothing changed.
    """
    tuner: Any = peft_model.base_model
    if top_k < 1 or not 0 <= threshold_epsilon <= 1 or not 0 <= mitigation_lambda <= 1:
        given = f"`top_k`={top_k}, `threshold_epsilon`={threshold_epsilon}, `mitigation_lambda`={mitigation_lambda}"
        raise ConfigError(f"{given}: one dimension at least, and shares between 0 and 1 are needed")
    (name,) = tuner.known([old_adapter_name])
    layers = [layer for layer in tuner.layers if name in layer.adapters]
    if wrong := [layer.path for layer in layers if not _plain(layer, name)]:
        raise AdapterError(f"{name!r} is no plain LoRA on one matrix at {listing(wrong)}, so it has no intruders")
    cfg: LoraConfig = replace(tuner.peft_config[name], init_lora_weights=True)
    tuner.add(new_adapter_name, cfg)
    load_state(tuner, new_adapter_name, cfg, adapter_state(tuner, name, cfg))
    for layer in layers:
        found = _weaken(layer, new_adapter_name, top_k, threshold_epsilon, mitigation_lambda)
        if logging_sink is not None:
            logging_sink(f"{layer.path}: {found or 'no'} intruders")
    peft_model.set_adapter(new_adapter_name)


def _plain(layer: AdapterLayer, name: str) -> bool:
    a = layer.adapters[name]
    parts = getattr(layer.site, "groups", 1) * getattr(layer.site, "experts", 1)
    return type(a.method) is Lora and parts == 1 and not layer.merged_adapters


def _weaken(layer: AdapterLayer, name: str, k: int, epsilon: float, share: float) -> int:
    """Weaken an adapter's intruders on one layer; returns how many there are."""
    a: Any = layer.adapters[name].to(torch.promote_types(layer.site.dtype, torch.float32))
    w = layer.site.weight().detach().to(a.dtype).reshape(layer.site.matrix)
    update = a.method.update(a).reshape(layer.site.matrix)
    u, s, v = torch.linalg.svd(w + update, full_matrices=False)
    foreign = intruders(torch.linalg.svd(w, full_matrices=False)[0], u[:, :k], epsilon)
    if not len(foreign):
        return 0
    update = update - (1 - share) * (u[:, foreign] * s[foreign]) @ v[foreign]
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    r = min(a.cfg.r, len(s))
    root = (s[:r] / a.scale).sqrt()
    held: Any = layer.adapters[name]
    for tensor, value in ((held.A.flatten(1)[:r], root[:, None] * v[:r]), (held.B.flatten(1)[:, :r], u[:, :r] * root)):
        tensor.copy_(value)
    return len(foreign)


def intruders(of_base: Tensor, of_adapted: Tensor, epsilon: float) -> Tensor:
    """Which of the columns of `of_adapted` (out, k) are like none of `of_base` (out, n)."""
    return ((of_base.T @ of_adapted).abs().amax(0) < epsilon).nonzero()[:, 0]

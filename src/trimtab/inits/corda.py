"""CorDA (https://arxiv.org/abs/2406.05223): the part of W that sampled inputs use most, or least, is trained.

With C = sum x x^T over inputs and W C = U S V: s B A = U_k S_k V_k C^-1 for the r largest singular values (instruction-
previewed mode, "ipm") or the r smallest (knowledge-preserved mode, "kpm"); the base keeps the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..methods.options import Options
from ..sites import Site, site_of
from ..tuner import progress
from .data import Mean, Prepared, keep, kept, linear_layers, looking, means, options_of

DAMPING = 0.01
"""What is added to the diagonal of C, as a share of its mean, so that it can be inverted."""


@dataclass(kw_only=True)
class CordaConfig(Options, field="corda_config"):
    """What is kept of a preparation, and in which mode adapters are built."""

    start = "corda"

    cache_file: str | None = None  # safetensors file of the decompositions; read instead of made when it is there
    covariance_file: str | None = None  # likewise of C, for other ranks
    corda_method: Literal["ipm", "kpm"] = "ipm"  # train the part that inputs use most ("ipm") or least ("kpm")
    verbose: bool = False  # show progress
    use_float16_for_covariance: bool = False  # sum up C in half precision
    prune_temporary_fields: bool = True  # forget the decompositions once an adapter has begun

    def mistakes(self) -> list[str]:
        if self.corda_method in ("ipm", "kpm"):
            return []
        return [f"`corda_method`={self.corda_method!r} is unknown; choose 'ipm' or 'kpm'"]


class CordaEigens(NamedTuple):
    """The part of W to train: `U_WC` (out, r), `S_WC` (r,) and `V_WC` (in, r), which is C^-1 V^T."""

    S_WC: Tensor
    U_WC: Tensor
    V_WC: Tensor


class Corda(Prepared):
    """See the head of this file."""

    name, note, preparation = "corda", "eigens", "preprocess_corda"

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        why = super().refuse(site, cfg, option)
        if why or site.kind != "linear":
            return why
        held = len(site.layer.eigens.S_WC)
        return f"preprocess_corda was told of rank {held}, not {cfg.r}" if held < min(cfg.r, *site.shape) else None

    def split(self, w: Tensor, r: int, a: Any, option: str) -> tuple[Tensor, Tensor]:
        s, u, v = (t.to(w) for t in a.site.layer.eigens)
        if a.cfg.corda_config.prune_temporary_fields:
            del a.site.layer.eigens
        root = (s[:r] / a.scale).sqrt()
        return (u[:, :r] * root)[None], (root[:, None] * v.T[:r])[None]


@torch.no_grad()
def preprocess_corda(
    model: nn.Module,
    lora_config: Any,
    run_model: Callable[[], object] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Note in each linear layer that a configuration means how adapters are to begin there: its `eigens`.

    Args:
        model: the base model.
        lora_config: a LoRA configuration with `init_lora_weights="corda"`.
        run_model: runs the model on sampled data; not needed when one of the files is there.
        hooked_model: the model that it runs, if that is another than `model`.

    Raises `ConfigError` or `AdapterError` when there is nothing to look at.
    """
    options = options_of(lora_config, "corda_config", "corda")
    layers = linear_layers(model, lora_config)
    keys = {(name, part): f"{name}.eigens.{part}" for name in layers for part in CordaEigens._fields}
    found = kept(options.cache_file, keys.values())
    if found is None:
        inputs = kept(options.covariance_file, layers)
        if inputs is None:
            inputs = covariances(linear_layers(hooked_model or model, lora_config), run_model, options)
            keep(options.covariance_file, inputs)
        found = {}
        for name, layer in progress(layers.items(), "CorDA") if options.verbose else layers.items():
            parts = decomposed(site_of(layer).weight(), inputs[name], lora_config.at(name).r, options.corda_method)
            found |= {keys[name, part]: tensor for part, tensor in parts._asdict().items()}
        keep(options.cache_file, found)
    for name, layer in layers.items():
        layer.eigens = CordaEigens(*(found[keys[name, part]] for part in CordaEigens._fields))


def covariances(
    layers: Mapping[str, nn.Module], run_model: Callable[[], object] | None, options: CordaConfig
) -> dict[str, Tensor]:
    """C of each layer, (in, in): the mean over calls, of inputs scaled to a largest magnitude of one."""
    if run_model is None:
        raise ConfigError("preprocess_corda needs `run_model`: neither `cache_file` nor `covariance_file` is there")
    dtype = torch.float16 if options.use_float16_for_covariance else torch.float32
    seen = {name: Mean() for name in layers}

    def look(name: str, x: Tensor) -> None:
        x = (x / x.abs().max()).flatten(0, -2).to(dtype)
        seen[name].add(x.T @ x)

    with looking(layers, look):
        run_model()
    return means(seen, "`run_model`")


def decomposed(w: Tensor, c: Tensor, r: int, method: str) -> CordaEigens:
    """The part of W (out, in) to train, by the covariance of its inputs C (in, in)."""
    w, c = w.float(), c.float()
    c = c + DAMPING * c.diagonal().mean() * torch.eye(len(c), device=c.device)
    u, s, v = torch.linalg.svd(w @ c.to(w.device), full_matrices=False)
    r = min(r, len(s))
    part = slice(r) if method == "ipm" else slice(len(s) - r, None)
    return CordaEigens(s[part], u[:, part], torch.linalg.solve(c.to(w.device), v[part].T))

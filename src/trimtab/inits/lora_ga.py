"""LoRA-GA (https://arxiv.org/abs/2407.05000): A and B begin along the first step of full fine-tuning.

With the gradient G = U S V of W: A = c V_i and B = c' U_j S_j, where i and j are r singular values each; the base keeps
W - s B A. The factors c and c' are those of PEFT, whose A and B the options describe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import listing
from ..layer import seeded
from ..methods.options import Options
from ..sites import Site
from .data import Mean, Prepared, keep, kept, linear_layers, means, options_of

DIRECTIONS = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass(kw_only=True)
class LoraGAConfig(Options, field="lora_ga_config"):
    """Which singular values begin which factor, and how large."""

    start = "lora_ga"

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = "ArB2r"  # A the first r, B the next; or as `indices` says
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = "stable"  # see `LoraGA.split`
    stable_gamma: int = 16  # B is divided by its root

    def mistakes(self) -> list[str]:
        checks = {
            f"`direction`={self.direction!r} is unknown; choose one of {listing(DIRECTIONS)}": self.direction
            in DIRECTIONS,
            f"`scale`={self.scale!r} is unknown; choose one of {listing(SCALES)}": self.scale in SCALES,
            f"`stable_gamma`={self.stable_gamma} must be above 0": self.stable_gamma > 0,
        }
        return [text for text, fine in checks.items() if not fine]


class LoraGA(Prepared):
    """See the head of this file."""

    name, note, preparation = "lora_ga", "_peft_loraga_grad", "preprocess_loraga"

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if site.kind == "linear" and 2 * cfg.r > min(site.shape):
            return f"2 `r`={2 * cfg.r} directions are needed, and the gradient has {min(site.shape)}"
        return super().refuse(site, cfg, option)

    def split(self, w: Tensor, r: int, a: Any, option: str) -> tuple[Tensor, Tensor]:
        options, layer = a.cfg.lora_ga_config, a.site.layer
        u, s, v = torch.linalg.svd(layer._peft_loraga_grad.to(w), full_matrices=False)
        largest = v.gather(1, v.abs().argmax(dim=1, keepdim=True)).sign()  # the same signs on every machine: A and B
        u, v = u * largest.T, v * largest  # take different vectors, so that what the base keeps depends on them
        i, j = indices(options.direction, r, seeded(a.layer.path, a.name, self.name))
        del layer._peft_loraga_grad
        down, up = v[i], u[:, j] * s[j]
        if options.scale == "stable":
            up = up * len(up) ** 0.25 / options.stable_gamma**0.5
        elif options.scale == "weight_svd":
            up = up * torch.linalg.matrix_norm(w[0], 2) / s[j].max().clamp_min(torch.finfo(s.dtype).tiny)
        elif options.scale == "gd_scale":
            down, up = down / a.scale, up / a.scale
        return up[None], down[None]


def indices(direction: str, r: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of the 2 r largest singular values begin A, and which B."""
    if direction == "random":
        both = torch.randperm(2 * r, generator=generator, device="cpu")[:r]
        return both, both
    first, every = torch.arange(r), torch.arange(2 * r)
    return {"ArBr": (every[1::2], every[::2]), "A2rBr": (first + r, first), "ArB2r": (first, first + r)}[direction]


def preprocess_loraga(
    model: nn.Module, lora_config: Any, train_step: Callable[[], object], cache_file: str | None = None
) -> None:
    """Note the gradient of its weight in each linear layer that a configuration means.

    Args:
        model: the base model.
        lora_config: a LoRA configuration with `init_lora_weights="lora_ga"`.
        train_step: runs forward and backward passes; the gradients of all of them are averaged.
        cache_file: safetensors file of the gradients; read instead of estimated when it is there.

    The gradient is that of a weight, even of a quantised one; nothing else in the model gets any. Raises `ConfigError`
    or `AdapterError` when there is nothing to look at.
    """
    options_of(lora_config, "lora_ga_config", "lora_ga")
    layers = linear_layers(model, lora_config)
    keys = {name: f"{name}.{LoraGA.note}" for name in layers}
    found = kept(cache_file, keys.values())
    if found is None:
        found = {keys[name]: g for name, g in gradients(model, layers, train_step).items()}
        keep(cache_file, found)
    for name, layer in layers.items():
        setattr(layer, LoraGA.note, found[keys[name]])


def gradients(model: nn.Module, layers: dict[str, nn.Module], train_step: Callable[[], object]) -> dict[str, Tensor]:
    """The mean gradient (out, in) of each layer's weight over backward passes, as the sum of g x^T over inputs."""
    seen = {name: Mean() for name in layers}

    def look(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, args: Any, y: Tensor) -> None:
            x = args[0].detach().flatten(0, -2).float()
            y = y if y.requires_grad else y.requires_grad_()
            y.register_hook(lambda g: seen[name].add(g.flatten(0, -2).float().T @ x))

        return hook

    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    hooks = [layer.register_forward_hook(look(name)) for name, layer in layers.items()]
    try:
        train_step()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.requires_grad = True
    return means(seen, "`train_step`")

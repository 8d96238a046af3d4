"""LoHa: https://arxiv.org/abs/2108.06098

W' = W + s (A1 B1) * (A2 B2), elementwise, with A (out, r), B (r, in) and s = alpha / r; the kernel of a convolution is
flattened into `in`. The effective form (Proposition 3) has A^T T B for A B: A (r, out), B (r, in), T (r, r, *kernel).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class LycorisConfig(AdapterConfig):
    """What the methods of the LyCORIS family have in common."""

    positive = ("r",)
    shares = ("rank_dropout", "module_dropout")

    r: int = 8  # rank
    alpha: float = 8  # numerator of the scale
    rank_dropout: float = 0.0  # in training, the probability of each output row to go without its update
    module_dropout: float = 0.0  # in training, the probability of a layer to go without its update
    use_effective_conv2d: bool = False  # convolutions with a kernel above 1: factor the kernel apart
    rank_pattern: dict[str, int] | None = field(default_factory=dict)  # rank by module name or regular expression
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)  # alpha likewise
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers


@dataclass(kw_only=True)
class LoHaConfig(LycorisConfig, kind="LOHA"):
    """Low-rank Hadamard product: rank up to r * r from two products of rank r."""

    init_weights: bool = True  # B2 starts at zero, without effect; False: random


class LoHa(Method):
    """See the head of this file."""

    name, prefix, defaults = "LOHA", "hada_", LORA_TARGETS

    def slots(self, site: Site, cfg: LoHaConfig) -> dict[str, Slot]:
        *experts, out, columns = site.matrix
        kernel = effective_kernel(site, cfg)
        a, b = ((cfg.r, out), (cfg.r, site.shape[1])) if kernel else ((out, cfg.r), (cfg.r, columns))
        shapes: dict[str, tuple[int, ...]] = {"w1_a": a, "w1_b": b, "w2_a": a, "w2_b": b}
        if kernel:
            shapes |= {"t1": (cfg.r, cfg.r, *kernel), "t2": (cfg.r, cfg.r, *kernel)}
        zero = "w2_b" if cfg.init_weights else ""
        return {
            k: Slot(name=f"hada_{k}", shape=(*experts, *shape), init=zeros if k == zero else kaiming)
            for k, shape in shapes.items()
        }

    def scaling(self, site: Site, cfg: LoHaConfig) -> float:
        return cfg.alpha / cfg.r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        one, two = (product(a, f"w{i}_a", f"w{i}_b", f"t{i}") for i in (1, 2))
        return a.site.add(w, a.scale * kept_rows(one * two, a, rescale=True).view(a.site.shape))

    def direct(self, site: Site, cfg: LoHaConfig) -> bool:
        """As a product of rank r * r, where that costs less than building W' and its gradient does."""
        plain = super().direct(site, cfg) and site.shape[1] == site.inp and not effective_kernel(site, cfg)
        return plain and 3 * cfg.r**2 * sum(site.matrix) < math.prod(site.matrix)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        down = (a.w1_b[:, None] * a.w2_b).flatten(0, 1)
        up = kept_rows((a.w1_a[:, :, None] * a.w2_a[:, None]).flatten(1), a, rescale=True)
        h = a.site.op(x, down.view(-1, a.site.inp, *kernel))
        return y + a.scale * a.site.up(h, up.view(*up.shape, *(1 for _ in kernel)))


def effective_kernel(site: Site, cfg: LycorisConfig) -> tuple[int, ...]:
    """The kernel that `use_effective_conv2d` factors apart, () for none; a single axis k is (k, 1) in files."""
    kernel = site.shape[2:] if site.kind == "conv" and cfg.use_effective_conv2d else ()
    return () if math.prod(kernel) == 1 else (*kernel, 1) if len(kernel) == 1 else kernel


def product(a: Any, left: str, right: str, core: str) -> Tensor:
    """A B, or A^T T B for each point of the kernel, as a matrix (rows, columns)."""
    if not a.has(core):
        return a.tensor(left) @ a.tensor(right)
    t = a.tensor(core).flatten(2)
    return torch.einsum("ijk,ip,jq->pqk", t, a.tensor(left), a.tensor(right)).flatten(1)


def kept_rows(update: Tensor, a: Any, rescale: bool) -> Tensor:
    """An update (..., rows, columns) without the rows that dropout takes, in training; `rescale`: the mean stays."""
    if not a.training or not (a.cfg.rank_dropout or a.cfg.module_dropout):
        return update
    rows = update.shape[-2]
    kept = (torch.rand(rows, 1, device=update.device) >= a.cfg.rank_dropout).to(update.dtype)
    if rescale:
        kept = kept / kept.mean().clamp(min=1 / rows)
    return update * kept * (torch.rand((), device=update.device) >= a.cfg.module_dropout)

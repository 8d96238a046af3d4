"""GraLoRA: https://arxiv.org/abs/2505.20355

W is cut into k by k blocks, each with a product of its own: W'_ji = W_ji + s B_ji A_ji, with A_ji (r / k, in / k),
B_ji (out / k, r / k) and s = alpha / (r + h). A (k, in / k, r) holds A_ji for block column i and block row j at
[i, :, j-th r / k]; B (k, r, out / k) holds B_ji at [j, i-th r / k]. The hybrid form adds s Bg Ag, a product of rank h
over the whole of W. The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class GraloraConfig(AdapterConfig, kind="GRALORA"):
    """Granular low-rank adaptation: as many parameters as LoRA, k times its rank."""

    shares = ("gralora_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 32  # rank of a row of blocks together, a multiple of `gralora_k`
    hybrid_r: int = 0  # rank of a product over the whole weight besides; 0: none
    alpha: float = 64  # numerator of the scale; the denominator is r + hybrid_r
    gralora_dropout: float = 0.0  # dropout on the adapter's input
    gralora_k: int = 2  # blocks a side; inputs and outputs must be multiples of it
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or gralora_only
    init_weights: bool = True  # B and Bg start at zero, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        for name, least in (("r", 1), ("gralora_k", 1), ("hybrid_r", 0)):
            if (value := getattr(self, name)) < least:
                wrong.append(f"`{name}`={value} must be at least {least}")
        if self.gralora_k > 0 and self.r % self.gralora_k:
            wrong.append(f"`r`={self.r} must be a multiple of `gralora_k`={self.gralora_k}: blocks share it evenly")
        return wrong


class Gralora(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "GRALORA", "gralora_", "gralora_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: GraloraConfig) -> dict[str, Slot]:
        (out, columns), k = site.matrix, cfg.gralora_k
        if out % k or columns % k:
            raise ConfigError(f"`gralora_k`={k} must divide both sides of a weight, and this one is {out} by {columns}")
        blockwise, whole = (zeros, zeros) if cfg.init_weights else (each_block, kaiming)
        slots = {
            "A": Slot(name="gralora_A", shape=(k, columns // k, cfg.r), init=each_block),
            "B": Slot(name="gralora_B", shape=(k, cfg.r, out // k), init=blockwise),
        }
        if h := cfg.hybrid_r:
            slots["Ag"] = Slot(name="gralora_A_general", shape=(h, columns), init=kaiming, module=True)
            slots["Bg"] = Slot(name="gralora_B_general", shape=(out, h), init=whole, module=True)
        return slots

    def scaling(self, site: Site, cfg: GraloraConfig) -> float:
        return cfg.alpha / (cfg.r + cfg.hybrid_r)

    def blocks(self, a: Any) -> tuple[Tensor, Tensor]:
        """A as (i, in / k, j, r / k) and B as (j, i, r / k, out / k)."""
        k = a.cfg.gralora_k
        return a.A.unflatten(2, (k, -1)), a.B.unflatten(1, (k, -1))

    def weight(self, w: Tensor, a: Any) -> Tensor:
        update = torch.einsum("ipjr,jirq->jqip", *self.blocks(a)).reshape(a.site.matrix)
        if a.has("Bg"):
            update = update + a.Bg @ a.Ag
        return a.site.add(w, a.scale * update.view(a.site.shape))

    def direct(self, site: Site, cfg: GraloraConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear"

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        x, (down, up) = a.drop(x), self.blocks(a)
        h = torch.einsum("...ip,ipjr->...jir", x.unflatten(-1, (a.cfg.gralora_k, -1)), down)
        update = torch.einsum("...jir,jirq->...jq", h, up).flatten(-2)
        if a.has("Bg"):
            update = update + a.site.up(a.site.op(x, a.Ag), a.Bg)
        return y + a.scale * update


def each_block(t: Tensor, generator: Generator) -> object:
    """The start of a linear layer for each block, held as (in, out)."""
    for block in t:
        kaiming(block.T, generator)
    return t

"""RandLoRA: https://arxiv.org/abs/2502.00987

W' = W + s sum_n B_n diag(l_n) A diag(g_n), full rank from n bases of rank r, with l_n (r) and g_n (the weight's shorter
side) trained; A and B_n are random, frozen, and shared by all layers, each of which reads their top left corner. The
bases B_n lie along the weight's longer side, and s = alpha / r; the kernel of a convolution is flattened into `in`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..method import Slot, constant, kaiming, normal, zeros
from ..sites import Site
from .factored import Factored
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class RandLoraConfig(AdapterConfig, kind="RANDLORA"):
    """Full-rank updates as sums of random low-rank bases, of which only the scales are trained."""

    positive = ("r",)
    shares = ("randlora_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 32  # rank of each basis; a smaller one means more bases, and more to train
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # keep A and B in the file; False: make them anew from the seed
    sparse: bool = False  # bases of -1, 0 and 1, two thirds of them 0
    very_sparse: bool = False  # the same with most of them 0: all but 1 / sqrt(the shorter side)
    randlora_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    randlora_alpha: float = 640  # numerator of the scale; about 20 times the rank
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained: none, all or randlora_only
    init_weights: bool = True  # l starts at zero, without effect; False: normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers


class RandLora(Factored):
    """See the head of this file."""

    name, prefix, dropout, defaults = "RANDLORA", "randlora_", "randlora_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: RandLoraConfig) -> dict[str, Slot]:
        short, long = sorted(site.matrix)
        n = math.ceil(short / cfg.r)
        start, file = zeros if cfg.init_weights else normal(), None if cfg.save_projection else ""
        return {
            "l": Slot(name="randlora_lambda", shape=(cfg.r, n), init=start),
            "g": Slot(name="randlora_gamma", shape=(n, short), init=constant(1 / short)),
            "A": Slot(name="randlora_A", shape=(cfg.r, 1, short), shared=True, trainable=False, file=file),
            "B": Slot(name="randlora_B", shape=(long, n, cfg.r), shared=True, trainable=False, file=file),
        }

    def shared(
        self, shapes: Mapping[str, tuple[int, ...]], cfg: RandLoraConfig, sites: Mapping[str, Site]
    ) -> Mapping[str, Tensor]:
        generator = Generator().manual_seed(cfg.projection_prng_key)
        short, (long, n, r) = shapes["randlora_A"][-1], shapes["randlora_B"]
        sizes = [(r, 1, short), *[(long, 1, r)] * n]
        if cfg.sparse or cfg.very_sparse:
            tail = 0.5 / (math.sqrt(short) if cfg.very_sparse else 3)
            drawn = [torch.rand(shapes[k], generator=generator, device="cpu") for k in ("randlora_A", "randlora_B")]
            a, b = ((u > 1 - tail).float() - (u < tail).float() for u in drawn)
        else:
            a, *parts = (torch.empty(size, dtype=torch.bfloat16, device="cpu") for size in sizes)
            for t in (a, *parts):
                kaiming(t, generator)
            b = torch.cat(parts, dim=1)
        return {"randlora_A": a / a.std(), "randlora_B": b / b.std()}

    def scaling(self, site: Site, cfg: RandLoraConfig) -> float:
        return cfg.randlora_alpha / cfg.r

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """(n r, in) and (out, n r)."""
        bases, scaled = a.B.flatten(1), (a.l.unsqueeze(-1) * a.A * a.g).flatten(0, 1)
        out, columns = a.site.matrix
        return (scaled, bases) if out >= columns else (bases.T, scaled.T)

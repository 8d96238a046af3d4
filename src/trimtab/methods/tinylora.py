"""TinyLoRA: https://arxiv.org/abs/2602.04118

W' = W + B (sum_i v_i P_i) A, where B (out, r) and A (r, in) are the largest singular directions of W, each times the
square root of its singular value, and the P_i (r, r) are random; all are frozen. v (u) is all that is trained, and the
layers of a group share it. The kernel of a convolution is flattened into `in`.
"""

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..method import Adapter, Init, Slot, uniform, zeros
from ..sites import Site
from .factored import Factored
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class TinyLoraConfig(AdapterConfig, kind="TINYLORA"):
    """As few trained numbers as one wants: a vector for a layer, or for many."""

    positive = ("r", "u")
    shares = ("tinylora_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 2  # singular directions
    u: int = 64  # length of v
    weight_tying: float = 0.0  # 0: every layer has a v of its own; 1: all share one; between: neighbours share
    projection_seed: int = 42  # seed of P
    save_projection: bool = True  # keep P in the file; False: make it anew from the seed
    init_v_bound: float = 0.02  # with `init_weights`="uniform", v starts between minus and plus this
    tinylora_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained: none, all or tinylora_only
    init_weights: bool | Literal["uniform"] = True  # v starts at zero, without effect; False or "uniform": random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if not 0 <= self.weight_tying <= 1:
            wrong.append(f"`weight_tying`={self.weight_tying} must be in [0, 1]")
        if self.init_weights not in (True, False, "uniform"):
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose True, False or 'uniform'")
        return wrong

    def at(self, path: str) -> Self:
        here = copy(super().at(path))
        vars(here)["index"] = vars(self)["order"][path]
        return here


class TinyLora(Factored):
    """See the head of this file."""

    name, prefix, dropout, defaults = "TINYLORA", "tinylora_", "tinylora_dropout", LORA_TARGETS

    def prepare(self, cfg: TinyLoraConfig, sites: Mapping[str, Site]) -> None:
        """Note the order of the layers, which says what group each is in, and which P is its own."""
        vars(cfg)["order"] = {path: i for i, path in enumerate(sites)}

    def slots(self, site: Site, cfg: TinyLoraConfig) -> dict[str, Slot]:
        out, columns = site.matrix
        r, index, layers = min(cfg.r, out, columns), vars(cfg)["index"], len(vars(cfg)["order"])
        groups = max(1, round(layers * (1 - cfg.weight_tying)))
        group = min(index // (layers // groups), groups - 1)
        rows, columns = (columns, out) if site.kind == "embedding" else (out, columns)  # as an embedding is stored
        start, kept = zeros if cfg.init_weights is True else uniform(cfg.init_v_bound), cfg.save_projection
        drawn = projection(cfg.projection_seed + index)
        return {
            "v": Slot(name="tinylora_v", part=str(group), shape=(cfg.u,), init=start, module=True, shared=True),
            "A": Slot(name="tinylora_A", shape=(r, columns), trainable=False),
            "B": Slot(name="tinylora_B", shape=(rows, r), trainable=False),
            "P": Slot(name="tinylora_P", shape=(cfg.u, r, r), init=drawn, trainable=False, kept=kept),
        }

    def start(self, a: Adapter) -> None:
        w = a.site.weight().detach().reshape(a.site.matrix)
        w = w.T if a.site.kind == "embedding" else w
        u, s, v = torch.linalg.svd(w.to(torch.promote_types(w.dtype, torch.float32)), full_matrices=False)
        r = len(a.A)
        a.A.copy_(s[:r, None].sqrt() * v[:r])
        a.B.copy_(u[:, :r] * s[:r].sqrt())

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        up = a.B @ torch.einsum("u,uij->ij", a.v, a.P)
        return (up.T, a.A.T) if a.site.kind == "embedding" else (a.A, up)


def projection(seed: int) -> Init:
    """P from a seed: normal, of variance 1 / r."""

    def draw(t: Tensor, generator: Generator) -> object:
        return t.normal_(generator=Generator().manual_seed(seed)).div_(math.sqrt(t.shape[-1]))

    return draw

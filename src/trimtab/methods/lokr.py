"""LoKr: https://arxiv.org/abs/2309.14859

W' = W + s W1 (x) W2, the Kronecker product, with W1 (out1, in1), W2 (out2, in2, *kernel), out = out1 out2,
in = in1 in2 and s = alpha / r. Where r is small beside them, W2 (and W1, if asked) is a product: A B, or A^T T B.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .loha import LycorisConfig, effective_kernel, kept_rows, product
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class LoKrConfig(LycorisConfig, kind="LOKR"):
    """Low-rank Kronecker product."""

    decompose_both: bool = False  # W1 as a product of rank r too
    decompose_factor: int = -1  # out1 and in1 where it divides, their limit elsewhere; -1: no limit
    rank_dropout_scale: bool = False  # scale the rows that `rank_dropout` leaves, so that the mean stays
    init_weights: bool | Literal["lycoris"] = True  # True: W1 starts at zero; "lycoris": W2; False: neither

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            wrong.append(f"`decompose_factor`={self.decompose_factor} must be at least 1, or -1 for no limit")
        if self.init_weights not in (True, False, "lycoris"):
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose True, False or 'lycoris'")
        return wrong


class LoKr(Method):
    """See the head of this file."""

    name, prefix, defaults = "LOKR", "lokr_", LORA_TARGETS

    def slots(self, site: Site, cfg: LoKrConfig) -> dict[str, Slot]:
        *experts, out, _ = site.matrix
        inp, kernel = site.shape[len(experts) + 1], site.shape[2:] if site.kind == "conv" else ()
        (out1, out2), (in1, in2) = split(out, cfg.decompose_factor), split(inp, cfg.decompose_factor)
        shapes: dict[str, tuple[int, ...]]
        if cfg.decompose_both and cfg.r < max(out1, in1) / 2:
            shapes = {"w1_a": (out1, cfg.r), "w1_b": (cfg.r, in1)}
        else:
            shapes = {"w1": (out1, in1)}
        if cfg.r >= max(out2, in2) / 2:
            shapes |= {"w2": (out2, in2, *kernel)}
        elif core := effective_kernel(site, cfg):
            shapes |= {"w2_a": (cfg.r, out2), "w2_b": (cfg.r, in2), "t2": (cfg.r, cfg.r, *core)}
        else:
            shapes |= {"w2_a": (out2, cfg.r), "w2_b": (cfg.r, in2 * math.prod(kernel))}
        zero = {True: ("w1", "w1_a"), "lycoris": ("w2", "w2_b"), False: ()}[cfg.init_weights]
        return {
            k: Slot(name=f"lokr_{k}", shape=(*experts, *shape), init=zeros if k in zero else kaiming)
            for k, shape in shapes.items()
        }

    def scaling(self, site: Site, cfg: LoKrConfig) -> float:
        return cfg.alpha / cfg.r

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """W1, and W2 as a matrix, its kernel flattened into the columns."""
        one = a.w1 if a.has("w1") else product(a, "w1_a", "w1_b", "")
        if not a.has("w2"):
            return one, product(a, "w2_a", "w2_b", "t2")
        return one, a.w2.flatten(1) if a.site.kind == "conv" else a.w2

    def weight(self, w: Tensor, a: Any) -> Tensor:
        one, two = self.factors(a)
        if a.has("w2") and a.site.kind == "conv" and len(a.site.shape) == 3:
            update = torch.kron(one, a.w2)  # aligns the last axes of W1 and W2 (out2, in2, k): files of PEFT mean it so
        else:
            update = one[..., :, None, :, None] * two[..., None, :, None, :]
        update = kept_rows(update.reshape(a.site.matrix), a, a.cfg.rank_dropout_scale)
        return a.site.add(w, a.scale * update.view(a.site.shape))

    def direct(self, site: Site, cfg: LoKrConfig) -> bool:
        plane = site.kind == "conv" and len(site.shape) > 3 and site.shape[1] == site.inp
        return super().direct(site, cfg) and (site.kind == "linear" or plane)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        """W1 and W2 act in turn on x seen as (in1, in2): the product is never built."""
        one, two = self.factors(a)
        (out1, in1), out2, kernel = one.shape, two.shape[0], a.site.shape[2:]
        if kernel:
            filters = two.view(out2, -1, *kernel)
            h = a.site.op(x, filters.repeat(in1, *(1 for _ in filters.shape[1:])))
        else:
            h = F.linear(x.unflatten(-1, (in1, -1)), two)
        lead = y.shape[: y.dim() - len(kernel) - 1]
        update = one @ h.reshape(*lead, in1, -1)
        update = kept_rows(update.reshape(*lead, out1 * out2, -1), a, a.cfg.rank_dropout_scale)
        return y + a.scale * update.reshape(y.shape)


def split(dim: int, factor: int) -> tuple[int, int]:
    """`dim` as a product of two: `factor` and the rest where it divides, else the nearest to square below it."""
    if factor > 0 and dim % factor == 0:
        return factor, dim // factor
    most = math.isqrt(dim) if factor < 0 else min(factor, math.isqrt(dim))
    small = next(m for m in range(most, 0, -1) if dim % m == 0)
    return small, dim // small

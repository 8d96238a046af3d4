"""HRA: https://arxiv.org/abs/2405.17484

W' = W H_1 ... H_r, with Householder reflections H_i = I - 2 u_i u_i^T / |u_i|^2, whose u_i (in) are trained. With
Gram-Schmidt, the u_i are made orthogonal first. They start in equal pairs, whose reflections cancel out. The kernel of
a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, kaiming
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class HRAConfig(AdapterConfig, kind="HRA"):
    """Householder reflection adaptation."""

    r: int = 8  # reflections; an odd number has an effect from the start
    apply_GS: bool = False  # make the vectors orthogonal (Gram-Schmidt)
    init_weights: bool = True  # in equal pairs, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or hra_only

    def mistakes(self) -> list[str]:
        return super().mistakes() + ([f"`r`={self.r} must be at least 1"] if self.r < 1 else [])


def pairs(t: Tensor, generator: Generator) -> object:
    """Columns in equal pairs, each drawn as a linear layer's; all different where their number is odd."""
    kaiming(t, generator)
    return t if t.shape[1] % 2 else t.copy_(t[:, ::2].repeat_interleave(2, dim=1))


class HRA(Method):
    """See the head of this file."""

    name, prefix, defaults = "HRA", "hra_", LORA_TARGETS

    def slots(self, site: Site, cfg: HRAConfig) -> dict[str, Slot]:
        return {"u": Slot(name="hra_u", shape=(site.matrix[1], cfg.r), init=pairs if cfg.init_weights else kaiming)}

    def units(self, a: Any) -> list[Tensor]:
        """The directions of the reflections, r of (in)."""
        found: list[Tensor] = []
        for u in a.u.T:
            if a.cfg.apply_GS and found:
                before = torch.stack(found, dim=1)
                u = u - before @ (before.T @ u)
            found.append(u / u.norm())
        return found

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return reflected(w.flatten(1).to(a.u.dtype), self.units(a)).view(w.shape)

    def direct(self, site: Site, cfg: HRAConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear"

    def input(self, x: Tensor, a: Any) -> Tensor:
        return reflected(x, self.units(a)[::-1])


def reflected(x: Tensor, units: list[Tensor]) -> Tensor:
    """Rows (..., in), reflected one direction after the other."""
    for u in units:
        x = x - 2 * (x @ u).unsqueeze(-1) * u
    return x

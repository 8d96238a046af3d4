"""HRA: https://arxiv.org/abs/2405.17484

W' = W H_1 ... H_r with the Householder reflections H_i = I - 2 u_i u_i^T / |u_i|^2: an orthogonal change that is of
rank r too. With `apply_GS` the u_i are made orthogonal first, so that W' = W (I - 2 U U^T). The kernel of a convolution
is flattened into its inputs; an embedding's vectors are reflected themselves.
"""

from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, kaiming
from ..sites import Site
from .rotation import features, on_features, orthonormal, reflections, unit
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class HRAConfig(AdapterConfig, kind="HRA"):
    """Householder reflection adaptation: what a layer reads is reflected r times."""

    positive = ("r",)

    r: int = 8  # number of reflections
    apply_GS: bool = False  # make their vectors orthogonal, by Gram and Schmidt
    init_weights: bool = True  # start with pairs of equal reflections, without effect: for an even `r`, not `apply_GS`
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or hra_only


class HRA(Method):
    """See the head of this file."""

    name, prefix, defaults = "HRA", "hra_", LORA_TARGETS

    def slots(self, site: Site, cfg: HRAConfig) -> dict[str, Slot]:
        n = features(site)
        if cfg.apply_GS and cfg.r > n:
            raise ConfigError(f"`r`={cfg.r} vectors of {n} features cannot be orthogonal; take fewer, or no `apply_GS`")
        paired = cfg.init_weights and not cfg.apply_GS and cfg.r % 2 == 0
        return {"U": Slot(name="hra_u", shape=(n, cfg.r), init=pairs if paired else kaiming)}

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """U (n, r) and D (r, n), by which H_1 ... H_r = I - U D."""
        u = orthonormal(a.U) if a.cfg.apply_GS else unit(a.U)
        return u, reflections(u)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        u, d = self.factors(a)
        return on_features(w, a.site, lambda rows: rows - (rows.to(u.dtype) @ u) @ d)

    def direct(self, site: Site, cfg: HRAConfig) -> bool:
        return super().direct(site, cfg) and site.kind != "conv"

    def input(self, x: Tensor, a: Any) -> Tensor:
        if a.site.kind == "embedding":
            return x
        u, d = self.factors(a)
        return x - (x @ d.mT) @ u.mT

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        if a.site.kind != "embedding":
            return y
        u, d = self.factors(a)
        return y - (y.to(u.dtype) @ u) @ d


def pairs(t: Tensor, generator: Generator) -> object:
    """Columns (n, r) that are equal two by two."""
    half = t[:, ::2].clone()
    kaiming(half, generator)
    return t.copy_(half.repeat_interleave(2, dim=1))

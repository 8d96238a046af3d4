"""VeRA: https://arxiv.org/abs/2310.11454

W' = W + diag(b) B diag(d) A, with b (out) and d (r) trained; A (r, in) and B (out, r) are random, frozen, and shared by
all layers, each of which reads their top left corner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ..config import AdapterConfig
from ..method import Method, Slot, constant, normal, ones, zeros
from ..sites import Site
from .targets import VERA_TARGETS


@dataclass(kw_only=True)
class VeraConfig(AdapterConfig, kind="VERA"):
    """Vector-based random matrix adaptation."""

    positive = ("r",)
    shares = ("vera_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 256  # rank; higher than LoRA's, since it costs one number a rank
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # keep A and B in the file; False: make them anew from the seed
    vera_dropout: float = 0.0  # dropout on the adapter's input
    d_initial: float = 0.1  # where d starts
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or vera_only
    init_weights: bool = True  # b starts at zero, without effect; False: at one, and d is normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers


class Vera(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "VERA", "vera_", "vera_dropout", VERA_TARGETS
    halves: ClassVar[int] = 1
    """How often A has r rows."""

    def slots(self, site: Site, cfg: Any) -> dict[str, Slot]:
        *experts, out, columns = site.matrix
        b, d = (zeros, constant(cfg.d_initial)) if cfg.init_weights else (ones, normal())
        rows, file = self.halves * cfg.r, None if cfg.save_projection else ""
        return {
            "b": Slot(name=f"{self.prefix}lambda_b", shape=(*experts, out), init=b),
            "d": Slot(name=f"{self.prefix}lambda_d", shape=(*experts, rows), init=d),
            "A": Slot(name=f"{self.prefix}A", shape=(rows, columns), shared=True, trainable=False, file=file),
            "B": Slot(name=f"{self.prefix}B", shape=(out, cfg.r), shared=True, trainable=False, file=file),
        }

    def shared(
        self, shapes: Mapping[str, tuple[int, ...]], cfg: Any, sites: Mapping[str, Site]
    ) -> Mapping[str, Tensor]:
        generator = Generator().manual_seed(cfg.projection_prng_key)
        return {
            k: nn.init.kaiming_uniform_(torch.empty(shapes[k], device="cpu"), generator=generator)
            for k in (f"{self.prefix}A", f"{self.prefix}B")
        }

    def weight(self, w: Tensor, a: Any) -> Tensor:
        down = (a.d.unsqueeze(-1) * a.A)[..., : a.cfg.r, :]
        return a.site.add(w, (a.b.unsqueeze(-1) * a.B @ down).view(a.site.shape))

    def direct(self, site: Site, cfg: Any) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        point = tuple(1 for _ in kernel)
        h = a.d.view(-1, *point) * a.site.op(a.drop(x), a.A.reshape(-1, a.site.inp, *kernel))
        return y + a.b.view(-1, *point) * a.site.up(self.latent(h, a), a.B.reshape(*a.B.shape, *point))

    def latent(self, h: Tensor, a: Any) -> Tensor:
        """What B reads, r features for every position, of what A and d made."""
        return h

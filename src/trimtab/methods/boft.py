"""BOFT: https://arxiv.org/abs/2311.06243

W' = diag(s) W R^T, where R = R_m ... R_1 is a product of m block-diagonal rotations, each over the features in another
order (a butterfly): R_1 mixes b neighbours, and every further factor mixes features twice as far apart, so that few
parameters reach all of them. Blocks are Cayley transforms of the skew-symmetric part of what is trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, normal, ones, zeros
from ..sites import Site
from .rotation import by_blocks, cayley, some_identity
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class BOFTConfig(AdapterConfig, kind="BOFT"):
    """Butterfly orthogonal fine-tuning; give `boft_block_size` or `boft_block_num`, and 0 for the other."""

    boft_block_size: int = 4  # b; 0: as the number of blocks says
    boft_block_num: int = 0  # number of blocks of a layer; 0: as the block size says
    boft_n_butterfly_factor: int = 1  # m; 1: OFT with a scale
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    boft_dropout: float = 0.0  # in training, the probability of a block to be the identity
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or boft_only
    init_weights: bool = True  # without effect at first; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        size, number = self.boft_block_size, self.boft_block_num
        if (size > 0) == (number > 0) or min(size, number) < 0:
            wrong.append(f"`boft_block_size`={size} and `boft_block_num`={number}: one must be above 0, the other 0")
        if self.boft_n_butterfly_factor < 1:
            wrong.append(f"`boft_n_butterfly_factor`={self.boft_n_butterfly_factor} must be at least 1")
        if not 0 <= self.boft_dropout < 1:
            wrong.append(f"`boft_dropout`={self.boft_dropout} must be in [0, 1)")
        return wrong


class BOFT(Method):
    """See the head of this file."""

    name, prefix, defaults = "BOFT", "boft_", LORA_TARGETS

    def slots(self, site: Site, cfg: BOFTConfig) -> dict[str, Slot]:
        (out, columns), m = site.matrix, cfg.boft_n_butterfly_factor
        named, n = ("boft_block_size", b) if (b := cfg.boft_block_size) else ("boft_block_num", cfg.boft_block_num)
        b = b or columns // n
        if columns % n or columns % b:
            raise ConfigError(f"`{named}`={n} must divide the {columns} inputs of a layer")
        if m > 1 and (b % 2 or columns % (b * 2 ** (m - 1))):
            raise ConfigError(
                f"`boft_n_butterfly_factor`={m} with blocks of {b} needs inputs in multiples of {b * 2 ** (m - 1)} and "
                f"an even block size; this layer has {columns}"
            )
        start, scale = (zeros, ones) if cfg.init_weights else (normal(0.1), normal())
        shape = (1, out) if site.kind == "conv" else (out, 1)
        return {
            "R": Slot(name="boft_R", shape=(m, columns // b, b, b), init=start),
            "s": Slot(name="boft_s", shape=shape, init=scale),
        }

    def rotate(self, x: Tensor, a: Any, inverse: bool) -> Tensor:
        """Features (..., in) times R, or with `inverse` times R^T."""
        factors = cayley((a.R.mT - a.R) / 2)
        if a.training and a.cfg.boft_dropout:
            factors = some_identity(factors, a.cfg.boft_dropout)
        order = list(enumerate(factors))
        for i, r in order if inverse else order[::-1]:
            x = unmixed(by_blocks(mixed(x, i, r.shape[-1]), r.mT if inverse else r), i, r.shape[-1])
        return x

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return (a.s.view(-1, 1) * self.rotate(w.flatten(1).to(a.R.dtype), a, inverse=True)).view(w.shape)

    def direct(self, site: Site, cfg: BOFTConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear"

    def reads_weight(self, cfg: BOFTConfig) -> bool:
        """Of the base layer, its bias, which is not scaled."""
        return True

    def input(self, x: Tensor, a: Any) -> Tensor:
        return self.rotate(x, a, inverse=False)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        bias = torch.zeros((), device=y.device) if a.site.bias is None else a.site.bias
        return (y - bias) * a.s.flatten() + bias


def mixed(x: Tensor, factor: int, b: int) -> Tensor:
    """Features in the order of a factor: within b 2^factor neighbours, half blocks of both halves side by side."""
    return x.unflatten(-1, (-1, 2, 2**factor, b // 2)).transpose(-3, -2).flatten(-4) if factor else x


def unmixed(x: Tensor, factor: int, b: int) -> Tensor:
    """Features in their own order again."""
    return x.unflatten(-1, (-1, 2**factor, 2, b // 2)).transpose(-3, -2).flatten(-4) if factor else x

"""BOFT: https://arxiv.org/abs/2311.06243

W' = diag(s) W R_1^T ... R_m^T: each R_i is block-diagonal and orthogonal once the features are permuted as in a fast
Fourier transform, so that m factors mix m times as far as one block reaches. A block is the Cayley transform of the
skew-symmetric part of a trained matrix. The kernel of a convolution is flattened into its inputs; an embedding's
vectors are rotated themselves.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, normal, ones, zeros
from ..sites import Site
from .rotation import blocks, butterfly, cayley, drop_blocks, features, on_features, wrong_blocks
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class BOFTConfig(AdapterConfig, kind="BOFT"):
    """Orthogonal butterfly fine-tuning: rotates what a layer reads by a product of sparse rotations."""

    positive = ("boft_n_butterfly_factor",)
    shares = ("boft_dropout",)

    boft_block_size: int = 4  # features in a block; give it or `boft_block_num`, and 0 for the other
    boft_block_num: int = 0  # number of blocks in a factor
    boft_n_butterfly_factor: int = 1  # m, the number of factors; 1 is OFT with s
    boft_dropout: float = 0.0  # probability, in training, that a block does not rotate
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or boft_only
    init_weights: bool = True  # start at Q = 0 and s = 1, without effect; False: normal around them
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        sizes = wrong_blocks(boft_block_num=self.boft_block_num, boft_block_size=self.boft_block_size)
        return super().mistakes() + sizes


class BOFT(Method):
    """See the head of this file."""

    name, prefix, defaults = "BOFT", "boft_", LORA_TARGETS

    def slots(self, site: Site, cfg: BOFTConfig) -> dict[str, Slot]:
        sizes = {"boft_block_num": cfg.boft_block_num, "boft_block_size": cfg.boft_block_size}
        (number, size), factors = blocks(features(site), **sizes), cfg.boft_n_butterfly_factor
        if factors > 1 and (size % 2 or number % 2 ** (factors - 1)):
            raise ConfigError(
                f"`boft_n_butterfly_factor`={factors} needs blocks of even size whose number 2^{factors - 1} divides; "
                f"here are {number} of size {size}"
            )
        scale = (1, site.out) if site.kind == "conv" else (site.out, 1)
        q, s = (zeros, ones) if cfg.init_weights else (normal(0.1), normal(0.1, mean=1.0))
        return {
            "Q": Slot(name="boft_R", shape=(factors, number, size, size), init=q),
            "s": Slot(name="boft_s", shape=scale, init=s),
        }

    def factors(self, a: Any) -> Tensor:
        """The blocks of the R_i, (m, b, n, n)."""
        r = cayley((a.Q.mT - a.Q) / 2)
        return drop_blocks(r, a.cfg.boft_dropout) if a.cfg.boft_dropout and a.training else r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        r = self.factors(a)
        rotated = on_features(w, a.site, lambda rows: turned_back(rows, r))
        return rotated * a.s.view(-1, *(1 for _ in w.shape[1:]))

    def direct(self, site: Site, cfg: BOFTConfig) -> bool:
        return super().direct(site, cfg) and site.kind != "conv"

    def reads_weight(self, cfg: BOFTConfig) -> bool:
        """Of the base layer, its bias, which s leaves alone."""
        return True

    def input(self, x: Tensor, a: Any) -> Tensor:
        if a.site.kind == "embedding":
            return x
        r = self.factors(a)
        for level in reversed(range(len(r))):
            x = butterfly(x, r[level], level)
        return x

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        if a.site.kind == "embedding":
            y = turned_back(y, self.factors(a))
        s, bias = a.s.flatten(), a.site.bias
        return y * s if bias is None else y * s + bias * (1 - s)


def turned_back(rows: Tensor, r: Tensor) -> Tensor:
    """`rows` (..., features) times R_1^T ... R_m^T."""
    for level, factor in enumerate(r):
        rows = butterfly(rows, factor.mT, level)
    return rows

"""OFT: https://arxiv.org/abs/2306.07280, input-centric as in OFTv2: https://arxiv.org/abs/2506.19847

W' = W R^T with R block-diagonal and orthogonal, so that the angles between the rows of W stay: the layer reads x R. A
block is the Cayley transform of a skew-symmetric Q, of which the upper triangle is trained. The kernel of a convolution
is flattened into its inputs; an embedding's vectors are rotated themselves. `coft.py` has the constrained variant.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, warn
from ..method import Method, Slot, normal, zeros
from ..sites import Site
from .rotation import cayley, drop_blocks, features, neumann, skew, turn
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class OFTConfig(AdapterConfig, kind="OFT"):
    """Orthogonal fine-tuning: rotates what a layer reads, block by block."""

    r: int = 0  # number of blocks; give it or `oft_block_size`, and 0 for the other
    oft_block_size: int = 32  # features in a block; where it does not divide them, the nearest size that does
    module_dropout: float = 0.0  # probability, in training, that a block does not rotate
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or oft_only
    init_weights: bool = True  # start at Q = 0, without effect; False: normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    coft: bool = False  # constrained OFT: the norm of Q is bounded
    eps: float = 6e-5  # that bound, for all blocks of a layer together
    block_share: bool = False  # one rotation for all blocks of a layer
    use_cayley_neumann: bool = True  # the transform by a Neumann series: faster, and not quite orthogonal
    num_cayley_neumann_terms: int = 5  # length of that series

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if (self.r == 0) == (self.oft_block_size == 0):
            wrong.append(
                f"`r`={self.r} and `oft_block_size`={self.oft_block_size}: one follows from the other; give one, and 0 "
                "for the other"
            )
        if min(self.r, self.oft_block_size) < 0:
            wrong.append(f"`r`={self.r} and `oft_block_size`={self.oft_block_size} must not be negative")
        if self.oft_block_size == 1:
            wrong.append("`oft_block_size`=1 leaves nothing to rotate; take at least 2")
        if not 0 <= self.module_dropout < 1:
            wrong.append(f"`module_dropout`={self.module_dropout} must be in [0, 1)")
        if self.coft and self.eps <= 0:
            wrong.append(f"`eps`={self.eps} must be above 0 with `coft`")
        if self.use_cayley_neumann and self.num_cayley_neumann_terms < 2:
            wrong.append(
                f"`num_cayley_neumann_terms`={self.num_cayley_neumann_terms} must be at least 2: one is no rotation"
            )
        return wrong


class OFT(Method):
    """See the head of this file."""

    name, prefix, defaults = "OFT", "oft_", LORA_TARGETS

    def slots(self, site: Site, cfg: OFTConfig) -> dict[str, Slot]:
        n = block_size(site, cfg)
        blocks = 1 if cfg.block_share else rotated(site) // n
        name = "oft_embedding_R" if site.kind == "embedding" else "oft_R"
        start = zeros if cfg.init_weights else normal(0.1)
        return {"Q": Slot(name=name, shape=(blocks, n * (n - 1) // 2), init=start, module=True)}

    def triangles(self, a: Any) -> Tensor:
        """The upper triangles of Q, (b, n (n - 1) / 2), as they act."""
        return a.Q

    def rotation(self, a: Any) -> Tensor:
        """The blocks of R, (b, n, n)."""
        cfg, q = a.cfg, skew(self.triangles(a))
        # By these two, files of PEFT mean rotations in opposite directions.
        r = neumann(q, cfg.num_cayley_neumann_terms) if cfg.use_cayley_neumann else cayley(-q)
        r = r.expand(rotated(a.site) // r.shape[-1], -1, -1)
        return drop_blocks(r, cfg.module_dropout) if cfg.module_dropout and a.training else r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        r = self.rotation(a)
        if a.site.kind == "embedding":
            return turn(w.mT, r).mT
        if w[0].numel() % r.shape[-1]:  # blocks reach across the groups of a convolution
            w = a.site.dense(w)
        columns = w[0].numel()
        groups = rotated(a.site) // columns
        side_by_side = w.reshape(groups, -1, columns).transpose(0, 1).flatten(1)
        return turn(side_by_side, r.mT).unflatten(1, (groups, columns)).transpose(0, 1).reshape(w.shape)

    def direct(self, site: Site, cfg: OFTConfig) -> bool:
        return super().direct(site, cfg) and site.kind != "conv"

    def input(self, x: Tensor, a: Any) -> Tensor:
        return x if a.site.kind == "embedding" else turn(x, self.rotation(a))

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return turn(y, self.rotation(a)) if a.site.kind == "embedding" else y


def rotated(site: Site) -> int:
    """How many features are rotated, those of all groups of a convolution."""
    return features(site) * site.inp // site.shape[1]


def block_size(site: Site, cfg: OFTConfig) -> int:
    """The size of a block; in files of PEFT, a number that does not divide the features means the nearest that does.

    Raises `ConfigError` where that leaves blocks of one feature.
    """
    option, total = "r" if cfg.r else "oft_block_size", rotated(site)
    asked = taken = cfg.r or cfg.oft_block_size
    if total % asked:
        taken = min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - asked))
    size = total // taken if cfg.r else taken
    if size == 1:
        raise ConfigError(f"`{option}`={asked} leaves blocks of 1 of the {total} features, which cannot be rotated")
    if taken != asked:
        warn(f"`{option}`={asked} does not divide the {total} features of a layer; {taken} is taken there")
    return size

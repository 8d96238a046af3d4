"""OFT: https://arxiv.org/abs/2306.07280, input-centric as in OFTv2: https://arxiv.org/abs/2506.19847

W' = W R^T with R block-diagonal and orthogonal, so that the angles between the rows of W stay: the layer reads x R. A
block is the Cayley transform of a skew-symmetric Q, of which the upper triangle is trained. The kernel of a convolution
is flattened into its inputs; an embedding's vectors are rotated themselves. `coft.py` has the constrained variant.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, normal, zeros
from ..sites import Site
from .rotation import blocks, cayley, drop_blocks, features, neumann, skew, turn, wrong_blocks
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class OFTConfig(AdapterConfig, kind="OFT"):
    """Orthogonal fine-tuning: rotates what a layer reads, block by block."""

    shares = ("module_dropout",)

    r: int = 0  # number of blocks; give it or `oft_block_size`, and 0 for the other
    oft_block_size: int = 32  # features in a block, a divisor of those that are rotated
    module_dropout: float = 0.0  # probability, in training, that a block does not rotate
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: Literal["none", "all", "oft_only"] = "none"  # type: ignore[misc]  # which biases of the base are trained too
    init_weights: bool = True  # start at Q = 0, without effect; False: normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    coft: bool = False  # constrained OFT: the norm of Q is bounded
    eps: float = 6e-5  # that bound, for all blocks of a layer together
    block_share: bool = False  # one rotation for all blocks of a layer
    use_cayley_neumann: bool = True  # the transform by a Neumann series: faster, and not quite orthogonal
    num_cayley_neumann_terms: int = 5  # length of that series

    def mistakes(self) -> list[str]:
        wrong = super().mistakes() + wrong_blocks(r=self.r, oft_block_size=self.oft_block_size)
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
        number, n = blocks(rotated(site), r=cfg.r, oft_block_size=cfg.oft_block_size)
        shape = (1 if cfg.block_share else number, n * (n - 1) // 2)
        name = "oft_embedding_R" if site.kind == "embedding" else "oft_R"
        start = zeros if cfg.init_weights else normal(0.1)
        return {"Q": Slot(name=name, shape=shape, init=start, module=True)}

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

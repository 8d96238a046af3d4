"""OFT: https://arxiv.org/abs/2306.07280, as it acts on the input: https://arxiv.org/abs/2506.19847

W' = W R^T with R block-diagonal, each block b by b the Cayley transform of a skew-symmetric Q: angles between the rows
of W, and their lengths, stay. Q is trained by what stands above its diagonal. The constrained form (COFT) bounds the
size of Q. The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, normal, zeros
from ..sites import Site
from .rotation import by_blocks, cayley, cayley_neumann, skew, some_identity
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class OFTConfig(AdapterConfig, kind="OFT"):
    """Orthogonal fine-tuning; give `oft_block_size` or `r`, and 0 for the other."""

    r: int = 0  # number of blocks of a layer; 0: as the block size says
    oft_block_size: int = 32  # b; 0: as the number of blocks says
    module_dropout: float = 0.0  # in training, the probability of a block to be the identity
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: Literal["none", "all", "oft_only"] = "none"  # type: ignore[misc]  # which biases of the base are trained and saved
    init_weights: bool = True  # Q starts at zero, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    coft: bool = False  # bound the Frobenius norm of each Q by eps / sqrt(blocks)
    eps: float = 6e-5  # that eps
    block_share: bool = False  # one block for all places
    use_cayley_neumann: bool = True  # a series instead of an inverse: faster, nearly orthogonal
    num_cayley_neumann_terms: int = 5  # its terms

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if (self.r > 0) == (self.oft_block_size > 0) or min(self.r, self.oft_block_size) < 0:
            wrong.append(
                f"`r`={self.r} and `oft_block_size`={self.oft_block_size}: one must be above 0, and the other 0"
            )
        if not 0 <= self.module_dropout < 1:
            wrong.append(f"`module_dropout`={self.module_dropout} must be in [0, 1)")
        if self.num_cayley_neumann_terms < 1:
            wrong.append(f"`num_cayley_neumann_terms`={self.num_cayley_neumann_terms} must be at least 1")
        return wrong


class OFT(Method):
    """See the head of this file."""

    name, prefix, defaults = "OFT", "oft_", LORA_TARGETS

    def slots(self, site: Site, cfg: OFTConfig) -> dict[str, Slot]:
        b = block_size(site, cfg)
        shape = (1 if cfg.block_share else site.matrix[1] // b, b * (b - 1) // 2)
        return {"q": Slot(name="oft_R", shape=shape, init=zeros if cfg.init_weights else normal(0.1), module=True)}

    def rotation(self, a: Any) -> Tensor:
        """R's blocks, (blocks or 1, b, b)."""
        b = block_size(a.site, a.cfg)
        q = skew(a.q, b)
        if a.cfg.coft:
            most = a.cfg.eps / (a.site.matrix[1] // b) ** 0.5
            sizes = q.flatten(1).norm(dim=1).clamp(min=most)
            q = q * (most / sizes).view(-1, 1, 1)
        r = cayley_neumann(q, a.cfg.num_cayley_neumann_terms) if a.cfg.use_cayley_neumann else cayley(-q)
        return some_identity(r, a.cfg.module_dropout) if a.training and a.cfg.module_dropout else r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return by_blocks(w.flatten(1).to(a.q.dtype), self.rotation(a).mT).view(w.shape)

    def direct(self, site: Site, cfg: OFTConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear"

    def input(self, x: Tensor, a: Any) -> Tensor:
        return by_blocks(x, self.rotation(a))


def block_size(site: Site, cfg: OFTConfig) -> int:
    """b. Raises `ConfigError` where blocks do not fill a layer's inputs evenly."""
    columns = site.matrix[1]
    named, n = ("oft_block_size", cfg.oft_block_size) if cfg.oft_block_size else ("r", cfg.r)
    if columns % n:
        raise ConfigError(f"`{named}`={n} must divide the {columns} inputs of a layer")
    return n if cfg.oft_block_size else columns // n

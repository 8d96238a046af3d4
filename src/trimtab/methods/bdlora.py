"""BD-LoRA (https://arxiv.org/abs/2510.23346), a variant of LoRA whose A or B is block-diagonal.

W' = W + s B A, where A (of layers that a server shards by input) or B (by output) is zero outside n blocks, so that
each shard holds its block alone. Only the blocks are stored, one below the other: A (r, in / n) or B (out, r / n).
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import ConfigError, listing
from ..method import Slot
from ..sites import Site
from .lora import Lora, LoraConfig
from .options import Options


@dataclass(kw_only=True)
class BdLoraConfig(Options, field="use_bdlora"):
    """Which factors are block-diagonal: those of modules whose path holds one of these words."""

    side: ClassVar[str] = ""
    """Of one module: "A", "B", or "" for neither."""

    target_modules_bd_a: list[str] | None = None  # words of modules whose A is, as "o_proj" and "down_proj"
    target_modules_bd_b: list[str] | None = None  # whose B is, as "q_proj" and "up_proj"
    nblocks: int = 1  # blocks of each, the number of shards
    match_strict: bool = True  # every module must be one or the other

    def mistakes(self) -> list[str]:
        both = set(self.target_modules_bd_a or ()) & set(self.target_modules_bd_b or ())
        wrong = [f"`nblocks`={self.nblocks} must be at least 1"] if self.nblocks < 1 else []
        return wrong + ([f"{listing(sorted(both))} cannot be block-diagonal in both A and B"] if both else [])

    def at(self, path: str) -> Self:
        named = {"A": self.target_modules_bd_a or (), "B": self.target_modules_bd_b or ()}
        here = copy(self)
        vars(here)["side"] = "".join(side for side, words in named.items() if any(word in path for word in words))
        return here


class BdLora(Lora):
    """See the head of this file."""

    product = ()
    transposed: ClassVar = {}
    no_start = "the blocks of BD-LoRA are no whole A and B"

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.use_bdlora is not None

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        slots, options = super().slots(site, cfg), cfg.use_bdlora
        if options.side == "AB":
            raise ConfigError("its path is named in both `target_modules_bd_a` and `target_modules_bd_b`")
        if not options.side and options.match_strict:
            raise ConfigError(
                "its path is in neither `target_modules_bd_a` nor `target_modules_bd_b`; name it, or pass "
                "`match_strict=False` for plain LoRA there"
            )
        if not options.side:
            return slots
        if getattr(site, "groups", 1) > 1 or getattr(site, "experts", 1) > 1:
            raise ConfigError(f"the factors of a {site.kind} layer with groups or experts are in blocks already")
        rows, columns, *kernel = slots[options.side].shape
        if rows % options.nblocks or columns % options.nblocks:
            raise ConfigError(f"`nblocks`={options.nblocks} must divide {options.side}, which is ({rows}, {columns})")
        blocks = replace(slots[options.side], shape=(rows, columns // options.nblocks, *kernel))
        return slots | {options.side: blocks}

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        n, side = a.cfg.use_bdlora.nblocks, a.cfg.use_bdlora.side
        return spread(a.A, n) if side == "A" else a.A, spread(a.B, n) if side == "B" else a.B


def spread(blocks: Tensor, n: int) -> Tensor:
    """The block-diagonal tensor (rows, columns, ...) of n blocks, one below the other in (rows, columns / n, ...)."""
    rows, columns, *kernel = blocks.shape
    full = blocks.new_zeros(n, rows // n, n, columns, *kernel)
    each = torch.arange(n, device=blocks.device)
    full[each, :, each] = blocks.view(n, rows // n, columns, *kernel)
    return full.view(rows, n * columns, *kernel)

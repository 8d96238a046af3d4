"""NF4 and double quantisation, as in QLoRA (https://arxiv.org/abs/2305.14314).

Each block of 64 entries of a row is c q, with c = max |w| and every q one of 16 levels, which are quantiles of a normal
distribution (appendix E). Double quantisation stores c - mean(c) in eight bits, with one factor for 256 of them: 4.127
instead of 4.5 bits a weight. The paper takes 8-bit floats there; integers of eight bits lose less.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .base import Codec

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCKS = 256
"""Factors that share one scale in double quantisation."""


@dataclass(frozen=True, kw_only=True)
class NF4(Codec):
    """Four bits a weight; rows are filled up with zeros to whole blocks."""

    name = "nf4"

    blocksize: int = 64  # entries that share one factor
    double_quant: bool = True  # quantise the factors too

    def __post_init__(self) -> None:
        if self.blocksize < 2 or self.blocksize % 2:
            raise ConfigError(f"NF4: `blocksize`={self.blocksize} must be even: two weights share a byte")

    def encode(self, w: Tensor) -> dict[str, Tensor]:
        w = w.float()
        blocks = F.pad(w, (0, -w.shape[1] % self.blocksize)).unflatten(1, (-1, self.blocksize))
        c = blocks.abs().amax(2)
        levels = torch.tensor(LEVELS, device=w.device)
        borders = (levels[1:] + levels[:-1]) / 2
        q = torch.bucketize(blocks / c.clamp_min(1e-30).unsqueeze(2), borders, out_int32=True)
        q = q.to(torch.uint8).flatten(1)
        held = {"codes": q[:, ::2] << 4 | q[:, 1::2], "pairs": torch.cartesian_prod(levels, levels)}
        return held | (self.squeeze(c) if self.double_quant else {"factors": c})

    def decode(self, held: Mapping[str, Tensor], columns: int) -> Tensor:
        codes = held["codes"]
        blocks = F.embedding(codes.int(), held["pairs"]).view(len(codes), -1, self.blocksize)  # both levels of a byte
        return blocks.mul_(self.factors(held).unsqueeze(2)).flatten(1)[:, :columns]

    def squeeze(self, c: Tensor) -> dict[str, Tensor]:
        """Factors c (rows, blocks) as integers of eight bits, one scale for 256 of them and one mean for all."""
        mean = c.mean()
        groups = F.pad((c - mean).flatten(), (0, -c.numel() % BLOCKS)).view(-1, BLOCKS)
        scales = (groups.abs().amax(1) / 127).clamp_min(1e-30)
        eight = (groups / scales.unsqueeze(1)).round().to(torch.int8)
        return {"factors": eight.flatten()[: c.numel()].view(c.shape), "scales": scales, "mean": mean}

    def factors(self, held: Mapping[str, Tensor]) -> Tensor:
        """The factors c (rows, blocks) in float32."""
        eight = held["factors"]
        if "scales" not in held:
            return eight
        scales = held["scales"].repeat_interleave(BLOCKS)[: eight.numel()].view(eight.shape)
        return eight.float() * scales + held["mean"]

    def rows(self, held: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        return {"codes": held["codes"][index], "factors": self.factors(held)[index], "pairs": held["pairs"]}

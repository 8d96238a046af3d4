"""One byte a weight and one factor a row: w = s q, with s = max |w| / (the largest q) over the row.

Int8: q is an integer from -127 to 127. FP8: q is a float8 e4m3 number, https://arxiv.org/abs/2209.05433.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Codec


class Scaled(Codec):
    """What both have in common."""

    stored: ClassVar[torch.dtype]
    largest: ClassVar[float]

    def encode(self, w: Tensor) -> dict[str, Tensor]:
        w = w.float()
        factors = (w.abs().amax(1, keepdim=True) / self.largest).clamp_min(1e-30)
        return {"codes": self.nearest(w / factors).to(self.stored), "factors": factors}

    def nearest(self, w: Tensor) -> Tensor:
        """Numbers, at most `largest`, as the number format will have them."""
        return w.clamp(-self.largest, self.largest)

    def decode(self, held: Mapping[str, Tensor], columns: int) -> Tensor:
        return held["codes"].float().mul_(held["factors"])


@dataclass(frozen=True, kw_only=True)
class Int8(Scaled):
    """Integers of eight bits."""

    name, stored, largest = "int8", torch.int8, 127.0

    def nearest(self, w: Tensor) -> Tensor:
        return w.round().clamp(-self.largest, self.largest)


@dataclass(frozen=True, kw_only=True)
class FP8(Scaled):
    """Floats of eight bits, e4m3."""

    name, stored, largest = "fp8", torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max

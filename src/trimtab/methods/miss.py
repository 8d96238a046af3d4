"""MiSS: https://arxiv.org/abs/2409.15371

W' = W + D, where a matrix K (r, out) is repeated along the inputs: D[o, i] = K[i mod r, o], so that inputs share rows.
"mini" repeats K (r, m) along the outputs too: D[o, i] = K[i mod r, o mod m]. "bat" lets the update depend on W, in
blocks of r by r: D_ji = W_ji K_j + K_j, with K (out / r, r, r). The kernel of a convolution is flattened into `in`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class MissConfig(AdapterConfig, kind="MISS"):
    """Matrix shard sharing."""

    positive = ("r", "mini_r")
    shares = ("miss_dropout",)

    own_bias: ClassVar[str] = "MiSS_only"

    r: int = 64  # rows of K; how many inputs apart share one
    miss_dropout: float = 0.0  # dropout on the adapter's input; "bat", which changes W itself, has none
    mini_r: int = 1  # with "mini", how many outputs apart share a column of K
    init_weights: bool | Literal["bat", "mini"] = True  # which of the three forms; False: the first, begun at random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or MiSS_only

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.init_weights not in (True, False, "bat", "mini"):
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose True, False, 'bat' or 'mini'")
        return wrong


class Miss(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "MISS", "miss_", "miss_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: MissConfig) -> dict[str, Slot]:
        (out, columns), r, m = site.matrix, cfg.r, cfg.mini_r
        if r > columns:
            raise ConfigError(f"`r`={r} is more than the {columns} inputs of this weight; give a smaller one")
        shape: tuple[int, ...] = (r, out)
        if cfg.init_weights == "bat":
            if out % r or columns % r:
                raise ConfigError(f"`r`={r} must divide both sides of a weight for 'bat', and it is {out} by {columns}")
            shape = (out // r, r, r)
        elif cfg.init_weights == "mini":
            if out % m:
                raise ConfigError(f"`mini_r`={m} must divide the {out} outputs of a weight")
            shape = (r, m)
        start = kaiming if cfg.init_weights is False else zeros
        return {"K": Slot(name="miss_block", shape=shape, init=start)}

    def shards(self, a: Any) -> Tensor:
        """K with a column for each output, (r, out)."""
        out = a.site.matrix[0]
        return a.K if a.K.shape[1] == out else a.K.repeat(1, out // a.K.shape[1])

    def weight(self, w: Tensor, a: Any) -> Tensor:
        out, columns = a.site.matrix
        if a.K.dim() == 3:
            r = a.cfg.r
            blocks = w.reshape(out // r, r, columns // r, r).to(a.K.dtype).transpose(1, 2)
            update = (blocks @ a.K.unsqueeze(1) + a.K.unsqueeze(1)).transpose(1, 2)
        else:
            update = self.shards(a).T.repeat(1, math.ceil(columns / a.cfg.r))[:, :columns]
        return a.site.add(w, update.reshape(a.site.shape))

    def direct(self, site: Site, cfg: MissConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear" and cfg.init_weights != "bat"

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        """Inputs that share a row are added up first."""
        r = a.cfg.r
        x = F.pad(a.drop(x), (0, -x.shape[-1] % r))
        return y + x.unflatten(-1, (-1, r)).sum(dim=-2) @ self.shards(a)

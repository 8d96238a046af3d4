"""SHiRA: https://arxiv.org/abs/2406.13175

W' = W + s M, where M (out, in) is zero but for r (out + in) trained entries, as many as a LoRA of rank r has. They lie
at random, or where a function of the user's own says. The kernel of a convolution is flattened into `in`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Method, Slot, normal, zeros
from ..sites import Site
from .fourierft import drawn
from .targets import LORA_TARGETS

SHIRA_TARGETS = LORA_TARGETS | {"phi": ["q_proj", "v_proj"]}


@dataclass(kw_only=True)
class ShiraConfig(AdapterConfig, kind="SHIRA"):
    """Sparse high-rank adaptation.

    `config.mask_fn = f` puts the entries where `f(layer, r, random_seed=...)`, of the weight's shape, is not zero. It
    is not saved, and need not be: the places are in the file.
    """

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format
    mask_fn: ClassVar[Callable[..., Tensor] | None] = None

    r: int = 32  # r (out + in) entries are trained
    mask_type: Literal["random"] = "random"  # where they lie, unless `mask_fn` says otherwise
    random_seed: int | None = None  # seed of where they lie; None: torch's
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    init_weights: bool = True  # start at zero, without effect; False: normal

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.r < 1:
            wrong.append(f"`r`={self.r} must be at least 1")
        if self.mask_type != "random":
            wrong.append(f"`mask_type`={self.mask_type!r} is unknown; choose 'random', or set `config.mask_fn`")
        return wrong


class Shira(Method):
    """See the head of this file."""

    name, prefix, defaults = "SHIRA", "shira_", SHIRA_TARGETS

    def slots(self, site: Site, cfg: ShiraConfig) -> dict[str, Slot]:
        n, total = cfg.r * sum(site.matrix), math.prod(site.matrix)
        if n > total:
            raise ConfigError(f"`r`={cfg.r} asks for {n} entries of a weight that has {total}; give a smaller one")

        def places(t: Tensor, generator: Generator) -> object:
            flat = torch.empty(n, dtype=torch.int64)
            drawn(total, cfg.random_seed)(flat, generator)
            return t.copy_(torch.stack(torch.unravel_index(flat.sort().values, site.matrix)))

        indices = Slot(name="shira_indices", shape=(2, n), init=places, trainable=False, dtype=torch.int32)
        start = zeros if cfg.init_weights else normal()
        return {"values": Slot(name="shira_weight", shape=(n,), init=start), "where": indices}

    def start(self, a: Adapter) -> None:
        if (mask := a.cfg.mask_fn) is None:
            return
        chosen = mask(a.site.layer, a.cfg.r, random_seed=a.cfg.random_seed)
        found = a.site.stored(chosen).reshape(a.site.matrix).nonzero().T
        if found.shape != a.where.shape:
            raise ConfigError(
                f"`mask_fn` gave {tuple(chosen.shape)} with {int(chosen.count_nonzero())} entries at {a.layer.path!r}; "
                f"it must have {a.where.shape[1]} in the shape of the layer's weight"
            )
        a.where.copy_(found)

    def scaling(self, site: Site, cfg: ShiraConfig) -> float:
        return 1.0

    def weight(self, w: Tensor, a: Any) -> Tensor:
        out, columns = a.site.matrix
        flat = a.where[0].long() * columns + a.where[1]
        update = torch.zeros(out * columns, dtype=a.values.dtype, device=a.values.device)
        return a.site.add(w, a.scale * update.index_add(0, flat, a.values).view(a.site.shape))

"""Super-tuning: https://arxiv.org/abs/2607.09287

W' = W + M, where M (out, in) is zero but at the entries of W that are largest (or smallest) in size, which are trained.
"Supra" adds a LoRA to it: W' = W + M + s B A, with s = alpha / r. The kernel of a convolution is flattened into `in`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Method, Slot, kaiming, normal, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class SupertuningConfig(AdapterConfig, kind="SUPERTUNING"):
    """Training the entries of a weight that are largest, alone or beside a LoRA."""

    shares = ("sparsity", "lora_dropout")

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    sparsity: float = 0.99  # share of the entries that stay as they are
    select_top: bool = True  # train the largest entries; False: the smallest
    r: int | None = None  # rank of a LoRA besides; None: none
    lora_alpha: float | None = None  # numerator of its scale; None: 2 r
    lora_dropout: float = 0.0  # dropout on its input
    init_weights: bool = True  # start without effect; False: random
    save_precomputed_indices: bool = True  # keep the places in the file; False: find them in the base weight again

    def __post_init__(self) -> None:
        if self.r is not None and self.lora_alpha is None:
            self.lora_alpha = 2 * self.r
        super().__post_init__()

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.r is not None and self.r < 1:
            wrong.append(f"`r`={self.r} must be at least 1, or None for no LoRA")
        return wrong


class Supertuning(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "SUPERTUNING", "supertuning_", "lora_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: SupertuningConfig) -> dict[str, Slot]:
        (out, columns), total = site.matrix, math.prod(site.matrix)
        n = int(total * (1 - cfg.sparsity))
        if n < 1:
            raise ConfigError(f"`sparsity`={cfg.sparsity} leaves none of the {total} entries of this weight to train")
        values = Slot(name="supertuning_values", shape=(n,), init=zeros if cfg.init_weights else normal())
        kept = cfg.save_precomputed_indices
        where = Slot(name="supertuning_indices", shape=(n,), trainable=False, dtype=torch.int32, kept=kept, signs=0)
        slots = {"values": values, "where": where}
        if r := cfg.r:
            start = zeros if cfg.init_weights else kaiming
            slots["A"] = Slot(name="supertuning_lora_A", shape=(r, columns), init=kaiming, module=True)
            slots["B"] = Slot(name="supertuning_lora_B", shape=(out, r), init=start, module=True)
        return slots

    def scaling(self, site: Site, cfg: SupertuningConfig) -> float:
        return cfg.lora_alpha / cfg.r if cfg.r and cfg.lora_alpha is not None else 1.0

    def derive(self, a: Adapter) -> None:
        if not a.where.is_meta:
            sizes = a.site.weight().detach().abs().flatten()
            a.where.copy_(sizes.topk(len(a.where), largest=a.cfg.select_top).indices)

    def sparse(self, a: Any) -> Tensor:
        """M, (out, columns)."""
        flat = torch.zeros(math.prod(a.site.matrix), dtype=a.values.dtype, device=a.values.device)
        return flat.index_add(0, a.where, a.values).view(a.site.matrix)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        update = self.sparse(a)
        if a.has("B"):
            update = update + a.scale * a.B @ a.A
        return a.site.add(w, update.view(a.site.shape))

    def direct(self, site: Site, cfg: SupertuningConfig) -> bool:
        """W' costs no more than M: only dropout asks for the LoRA apart."""
        return super().direct(site, cfg) and site.kind == "linear" and cfg.lora_dropout > 0 and cfg.r is not None

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return y + a.site.op(x, self.sparse(a)) + a.scale * a.site.up(a.site.op(a.drop(x), a.A), a.B)

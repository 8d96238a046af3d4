"""DoRA (https://arxiv.org/abs/2402.09353), a variant of LoRA: W' = m (W + s B A) / |W + s B A|.

Norms are taken by output row, and no gradient flows through them (section 4.3). `m` has one entry an output feature.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Adapter, Slot
from ..sites import Site
from .lora import Lora, LoraConfig


class Dora(Lora):
    """See the head of this file."""

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.use_dora

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        shape = (1, site.out, *(1 for _ in site.shape[2:])) if site.kind == "conv" else (site.out,)
        magnitude = Slot(name="lora_magnitude_vector", shape=shape, module=True, file="lora_magnitude_vector")
        return super().slots(site, cfg) | {"m": magnitude}

    def start(self, a: Adapter) -> None:
        """After LoRA's own start, set m to the norms that W + s B A has, so that the adapter begins without effect."""
        super().start(a)
        dtype = torch.promote_types(a.site.dtype, torch.float32)
        if not a.m.is_meta:
            updated = super().weight(a.site.weight().to(dtype), a.to(dtype))
            a.m.copy_(row_norm(updated).view(a.m.shape))

    def weight(self, w: Tensor, a: Any) -> Tensor:
        updated = super().weight(w, a)
        return updated * (a.m.flatten() / row_norm(updated.detach())).view(-1, *(1 for _ in updated.shape[1:]))

    def reads_weight(self, cfg: LoraConfig) -> bool:
        return True

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        axis = (-1, *(1 for _ in a.B.shape[2:]))
        bias = a.site.bias.view(axis) if a.site.bias is not None else torch.zeros((), device=y.device)
        return (a.m.flatten() / self.norms(a)).view(axis) * (super().output(x, y - bias, a)) + bias

    def norms(self, a: Any) -> Tensor:
        """The row norms of W + s B A, (out,), without a gradient; kept within `DoraCaching` until a tensor changes."""
        if a.training or not DoraCaching.enabled:
            return row_norm(super().weight(a.site.weight().detach(), a).detach())
        now = (a.scale, *((id(t), t._version) for t in (a.A, a.B, a.site.layer.weight)))
        kept = vars(a).get("_norms")
        if kept is None or kept[0] != now:
            kept = vars(a)["_norms"] = (now, row_norm(super().weight(a.site.weight().detach(), a).detach()))
        return kept[1]


class DoraCaching:
    """Within it, or after `DoraCaching()(enabled=True)`, DoRA's norms are computed once, at the cost of their memory.

    A change of the adapter or the base is noticed; in training nothing is kept.
    """

    enabled: ClassVar[bool] = False

    def __call__(self, enabled: bool = True) -> None:
        """Switch it on or off until further notice."""
        DoraCaching.enabled = enabled

    def __enter__(self) -> "DoraCaching":
        self.before = DoraCaching.enabled
        DoraCaching.enabled = True
        return self

    def __exit__(self, *error: object) -> None:
        DoraCaching.enabled = self.before


def row_norm(w: Tensor) -> Tensor:
    """The Euclidean norm of each output row, (out,)."""
    return w.flatten(1).norm(dim=1)

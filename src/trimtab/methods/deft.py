"""DEFT: https://proceedings.neurips.cc/paper_files/paper/2025/hash/93a34a7138bdad95e874018d5f491cc6-Abstract-Conference.html

W' = W - P relu(P)^T W + s P R, with P (out, r), R (r, in): what W writes into a subspace is taken away, and something
else written there. "qr" puts Q, of P = Q T, for both P and relu(P), so that the subspace is taken away entirely. PaRa
(https://arxiv.org/abs/2406.05641) takes away and writes nothing. The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..method import Adapter, Method, Slot, normal
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class DeftConfig(AdapterConfig, kind="DEFT"):
    """Decompositional efficient fine-tuning: removes a subspace of the outputs and writes a product there."""

    positive = ("r",)
    shares = ("deft_dropout",)

    r: int = 8  # dimensions of the subspace, at most the layer's outputs
    decomposition_method: str = "relu"  # how P takes away: "relu" (by itself and relu(P)) or "qr" (orthogonally)
    init_scale: float = 1.0  # with `init_weights=False`, a factor on the standard deviation that R starts with
    alpha: float | None = None  # s = alpha / r; None: 1
    para: bool = False  # PaRa: take away and write nothing; there is no R, and an effect from the start
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    deft_dropout: float = 0.0  # dropout on what R reads
    init_weights: bool = True  # R starts with what P takes away, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or deft_only

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.decomposition_method not in ("relu", "qr"):
            wrong.append(f"`decomposition_method`={self.decomposition_method!r} is unknown; choose 'relu' or 'qr'")
        if self.init_scale < 0:
            wrong.append(f"`init_scale`={self.init_scale} must not be negative")
        if self.alpha == 0:
            wrong.append("`alpha`=0 would leave R without effect; give None for no scale, or `para=True` for no R")
        return wrong


class Deft(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "DEFT", "deft_", "deft_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: DeftConfig) -> dict[str, Slot]:
        (out, columns), r = site.matrix, min(cfg.r, site.out)
        slots = {"P": Slot(name="deft_P", shape=(out, r), init=normal(0.02))}
        if not cfg.para:
            slots["R"] = Slot(name="deft_R", shape=(r, columns), init=normal(0.02 * cfg.init_scale))
        return slots

    def scaling(self, site: Site, cfg: DeftConfig) -> float:
        return 1.0 if cfg.alpha is None else cfg.alpha / min(cfg.r, site.out)

    def start(self, a: Adapter) -> None:
        if a.has("R") and a.cfg.init_weights:
            _, read = self.subspace(a)
            a.R.copy_(read.mT @ a.site.weight().detach().flatten(1).to(read.dtype) / a.scale)

    def subspace(self, a: Any) -> tuple[Tensor, Tensor]:
        """What writes into the subspace and what reads from it, (out, r) both."""
        if a.cfg.decomposition_method == "relu":
            return a.P, a.P.relu()
        q = torch.linalg.qr(a.P.to(torch.promote_types(a.P.dtype, torch.float32)))[0].to(a.P.dtype)
        return q, q

    def weight(self, w: Tensor, a: Any) -> Tensor:
        write, read = self.subspace(a)
        left = w - (write @ (read.mT @ w.flatten(1).to(a.P.dtype))).view(w.shape)
        return a.site.add(left, a.scale * (write @ a.R).view(a.site.shape)) if a.has("R") else left

    def direct(self, site: Site, cfg: DeftConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def reads_weight(self, cfg: DeftConfig) -> bool:
        """Of the base layer, its bias: nothing is taken away from that."""
        return True

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        point = tuple(1 for _ in kernel)
        write, read = (t.view(*t.shape, *point) for t in self.subspace(a))
        product = y.to(read.dtype) if a.site.bias is None else y.to(read.dtype) - a.site.bias.view(-1, *point)
        h = -a.site.up(product, read.transpose(0, 1))
        if a.has("R"):
            h = h + a.scale * a.site.op(a.drop(x), a.R.view(-1, a.site.inp, *kernel))
        return y + a.site.up(h, write)

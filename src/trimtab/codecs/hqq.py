"""Linear layers of HQQ, half-quadratic quantisation: https://mobiusml.github.io/hqq_blog/."""

from typing import Any

import torch
from torch import Tensor

from ..sites import Snapshot, bare_linear
from .base import CodecSite


class HqqSite(CodecSite):
    """The weight is `W_q` and what `meta` says of it."""

    layers = ("hqq.core.quantize.HQQLinear",)
    codec = "hqq"

    @property
    def device(self) -> torch.device:
        return self.layer.W_q.device

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.compute_dtype

    def weight(self) -> Tensor:
        return self.layer.dequantize().detach()

    def encode(self, w: Tensor) -> None:
        layer, dense = self.layer, bare_linear(self.inp, self.out)
        dense.weight = torch.nn.Parameter(w, requires_grad=False)
        config: dict[str, Any] = layer.quant_config | {"offload_meta": layer.offload_meta}
        made = type(layer)(dense, config, compute_dtype=layer.compute_dtype, device=layer.device)
        layer.W_q, layer.meta = made.W_q, made.meta

    def owned(self) -> dict[str, Tensor]:
        return {"W_q": self.layer.W_q} | ({} if self.bias is None else {"bias": self.bias})

    def snapshot(self) -> Snapshot:
        old = super().snapshot()
        old["W_q"].meta = self.layer.meta  # type: ignore[attr-defined]
        return old

    def restore(self, old: Snapshot) -> None:
        super().restore(old)
        self.layer.meta = old["W_q"].meta  # type: ignore[attr-defined]

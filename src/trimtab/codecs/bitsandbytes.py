"""Layers of bitsandbytes: `Linear4bit` (NF4 and FP4), `Linear8bitLt`, and the embeddings, on every device they run on.

A layer that is not quantised yet (that happens when it is moved to its device) is a plain one with adapters; it may be
quantised later.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..sites import EmbeddingSite, Snapshot
from .base import CodecSite


class FourBitSite(CodecSite):
    """https://arxiv.org/abs/2305.14314: what the weight is, its `quant_state` tells."""

    layers = ("bitsandbytes.nn.modules.Linear4bit",)
    codec = "bitsandbytes 4-bit"

    def __init__(self, layer: Any, parameter: str = "weight") -> None:
        # On some CPUs inference would repack the weight in place, factors cut to bfloat16: not beside an adapter.
        layer.support_avx512bf16_for_cpu = False
        super().__init__(layer, parameter)

    @property
    def state(self) -> Any:
        """How the weight is quantised; None where it is not yet."""
        return getattr(self.layer.weight, "quant_state", None) or getattr(self.layer, "quant_state", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype if self.state else self.layer.weight.dtype

    def weight(self) -> Tensor:
        if self.state is None:
            return self.layer.weight.data
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.layer.weight.data, self.state)

    def encode(self, w: Tensor) -> None:
        old = self.layer.weight
        new = type(old)(
            w.to(self.dtype).contiguous(), requires_grad=False, blocksize=old.blocksize,
            compress_statistics=old.compress_statistics, quant_type=old.quant_type, quant_storage=old.quant_storage,
            module=self.layer,
        )  # fmt: skip
        self.layer.weight = new if self.state is None else new.to(old.device)

    def restore(self, old: Snapshot) -> None:
        super().restore(old)
        self.layer.quant_state = getattr(old["weight"], "quant_state", None)


class EightBitSite(CodecSite):
    """LLM.int8: https://arxiv.org/abs/2208.07339. It quantises activations too, to eight bits but for outliers.

    Nothing in the layer tells its number format; that of its bias is taken, or float32.
    """

    layers = ("bitsandbytes.nn.modules.Linear8bitLt",)
    codec = "bitsandbytes 8-bit"

    @property
    def factors(self) -> Tensor | None:
        """The largest absolute value of each row; None where the weight is not quantised."""
        held = getattr(self.layer.weight, "SCB", None)
        return held if held is not None or not hasattr(self.layer, "state") else self.layer.state.SCB

    @property
    def dtype(self) -> torch.dtype:
        weight = self.layer.weight
        if weight.is_floating_point():
            return weight.dtype
        return getattr(self.layer, "dtype", torch.float32) if self.bias is None else self.bias.dtype

    def weight(self) -> Tensor:
        codes, factors = self.layer.weight.data, self.factors
        return codes if factors is None else (codes.float() * (factors.view(-1, 1) / 127)).to(self.dtype)

    def encode(self, w: Tensor) -> None:
        old = self.layer.weight
        if self.factors is None:
            self.hold(type(old)(w.to(old.dtype), False, old.has_fp16_weights))
            return
        from bitsandbytes.functional import int8_vectorwise_quant

        codes, factors, _ = int8_vectorwise_quant(w.half().contiguous())
        self.hold(type(old)(codes, False, False, codes, factors))

    def hold(self, weight: Any) -> None:
        """Put a weight in place, from which the layer will take what it computes with."""
        self.layer.weight = weight
        if hasattr(self.layer, "state"):
            self.layer.state.CB = self.layer.state.SCB = None

    def snapshot(self) -> Snapshot:
        extra = {} if self.factors is None else {"factors": self.factors}
        return super().snapshot() | extra

    def restore(self, old: Snapshot) -> None:
        weight: Any = old["weight"]
        if "factors" in old:
            weight.CB, weight.SCB = weight.data, old["factors"]
        self.hold(weight)
        if "bias" in old:
            self.layer.bias = old["bias"]


class EmbeddingOf(EmbeddingSite):
    """What both embeddings have in common: they store (num, dim)."""

    layers: ClassVar[tuple[str, ...]] = ()

    def size(self) -> tuple[int, ...]:
        return self.layer.embedding_dim, self.layer.num_embeddings

    def plain(self, w: Tensor, b: Tensor | None = None) -> nn.Module:
        table = w.T.detach().to(self.dtype).contiguous()
        made = nn.Embedding.from_pretrained(table, padding_idx=self.layer.padding_idx)
        return made.train(self.layer.training)


class FourBitEmbeddingSite(EmbeddingOf, FourBitSite):
    """An embedding in four bits."""

    layers = ("bitsandbytes.nn.modules.Embedding4bit",)

    def weight(self) -> Tensor:
        return FourBitSite.weight(self).T


class EightBitEmbeddingSite(EmbeddingOf, EightBitSite):
    """An embedding in eight bits."""

    layers = ("bitsandbytes.nn.modules.Embedding8bit",)

    def weight(self) -> Tensor:
        return EightBitSite.weight(self).T

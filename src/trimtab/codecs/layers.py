"""Layers that hold their frozen weight in one of our own codecs, and the sites that adapters see them as."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import offload
from ..sites import EmbeddingSite, Site, scaled, site_of
from .base import Codec, CodecSite, frozen


class FrozenProduct(torch.autograd.Function):
    """y = x W^T with a stored W, from (..., in) to (..., out); W is not kept, but decoded again for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codec: Codec, columns: int, names: tuple[str, ...], *held: Tensor) -> Tensor:
        """`held` are the stored tensors, in the order of `names`."""
        ctx.save_for_backward(*held)
        ctx.codec, ctx.columns, ctx.names, ctx.dtype = codec, columns, names, x.dtype
        w = codec.decode(dict(zip(names, held, strict=True)), columns)
        return F.linear(x, w.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x; nothing else has one."""
        held = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        w = ctx.codec.decode(held, ctx.columns).to(ctx.dtype)
        return grads[0] @ w, None, None, None, *(None for _ in held)


class Quantized(nn.Module):
    """A layer whose weight is stored as `codes`, `factors`, ...; it computes in `dtype`, whatever it is given.

    Moved to another number format, only `dtype` changes. What it does not know of, it asks the layer that it was.
    """

    def __init__(self, layer: nn.Module, codec: Codec) -> None:
        super().__init__()
        self.origin: Site = site_of(layer)
        self.codec = codec
        self.dtype = codec.dtype or self.origin.dtype
        self.columns = self.turned(self.origin.weight()).shape[1]
        self._parameters |= self.encoded(self.origin.weight())
        self.names = tuple(self._parameters)
        self._parameters |= {k: p for k, p in layer._parameters.items() if k != "weight"}
        self._buffers |= layer._buffers
        self.requires_grad_(False)
        self.train(layer.training)
        self.origin.layer = copy.copy(layer)
        vars(self.origin.layer).update(_parameters=dict.fromkeys(layer._parameters), _buffers={})

    def encoded(self, w: Tensor) -> dict[str, nn.Parameter]:
        """The tensors that stand for a canonical weight, by name."""
        held = self.codec.encode(self.turned(w.detach()))
        return {k: nn.Parameter(t, requires_grad=False) for k, t in held.items()}

    @staticmethod
    def turned(w: Tensor) -> Tensor:
        """A canonical weight as the matrix whose rows are stored apart; and back."""
        return w

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors that stand for the weight, by name."""
        return {k: offload.get(self, k) for k in self.names}

    @property
    def weight(self) -> Tensor:
        """The canonical weight that is stored, in the number format the layer computes in."""
        return self.decoded(self.dtype)

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The canonical weight that is stored."""
        return self.turned(self.codec.decode(self.stored, self.columns)).to(dtype)

    def plain(self, w: Tensor, b: Tensor | None = None) -> nn.Module:
        """The layer that it was, with this canonical weight, and bias, as ordinary tensors."""
        made = copy.copy(self.origin.layer)
        held = dict(self._parameters) | {"weight": self.origin.stored(w)} | ({} if b is None else {"bias": b})
        made._parameters = {k: frozen(held[k], self.dtype) for k in made._parameters}
        made._buffers = dict(self._buffers)
        return made.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantized":
        before = {k: t.data for k, t in self.stored.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key, t in self.stored.items():
            if t.dtype != before[key].dtype:
                t.data = before[key].to(t.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before["codes"].device)).dtype
        return self

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_") or "origin" not in vars(self):
                raise
        return getattr(self.origin.layer, key)

    def extra_repr(self) -> str:
        """Sizes as canonical (out, in), and the codec."""
        return f"out={self.origin.out}, in={self.origin.inp}, bias={self.bias is not None}, {self.codec}, {self.dtype}"


class QuantizedLinear(Quantized):
    """`nn.Linear` or GPT-2's `Conv1D`; factors go by output row."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the number format of `x`, or of autocast."""
        auto = torch.is_autocast_enabled(x.device.type)
        h = x.to(torch.get_autocast_dtype(x.device.type) if auto else self.dtype)
        y = self.product(h) if h.requires_grad else F.linear(h, self.decoded(h.dtype))
        if self.bias is not None:
            y = y + self.bias.to(h.dtype)
        return y if auto else y.to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        """The product x W^T, of which nothing but what is stored is kept for the backward."""
        held = self.stored
        return FrozenProduct.apply(  # type: ignore[no-untyped-call]
            x, self.codec, self.columns, tuple(held), *held.values()
        )


class QuantizedEmbedding(Quantized):
    """`nn.Embedding`; factors go by token, and only the rows that are looked up are decoded."""

    bias = None

    @staticmethod
    def turned(w: Tensor) -> Tensor:
        return w.T

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers (...) to (..., dim)."""
        rows = self.codec.decode(self.codec.rows(self.stored, x.flatten()), self.columns)
        return scaled(self, rows.to(self.dtype).view(*x.shape, -1))


class QuantizedSite(CodecSite):
    """A linear layer in one of our own codecs."""

    layers = ("trimtab.codecs.layers.QuantizedLinear",)
    codec = "one of ours"  # of a site: which

    def __init__(self, layer: Any, parameter: str = "weight") -> None:
        self.codec = layer.codec.name
        super().__init__(layer, "codes")

    def size(self) -> tuple[int, ...]:
        return self.layer.origin.shape

    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.dtype

    def stored(self, w: Tensor) -> Tensor:
        return self.layer.origin.stored(w)

    def owned(self) -> dict[str, Tensor]:
        return dict(self.layer.stored) | ({} if self.bias is None else {"bias": self.bias})

    def write(self, w: Tensor, b: Tensor | None = None) -> None:
        for key, t in self.layer.encoded(w).items():
            offload.put(self.layer, key, t)
        if b is not None:
            self._set("bias", b)

    def plain(self, w: Tensor, b: Tensor | None = None) -> nn.Module:
        return self.layer.plain(w, b)


class QuantizedEmbeddingSite(QuantizedSite, EmbeddingSite):
    """An embedding in one of our own codecs."""

    layers = ("trimtab.codecs.layers.QuantizedEmbedding",)

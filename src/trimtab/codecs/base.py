"""What storing a weight in fewer bits asks for: a `Codec`, which is a value, and a `CodecSite`, which adapters see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..sites import Site, bare_linear


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A way to store a matrix (rows, columns), row by row; a value that `quantize_` takes."""

    name: ClassVar[str]

    dtype: torch.dtype | None = None  # number format that layers compute in; None: that of the weight

    def encode(self, w: Tensor) -> dict[str, Tensor]:
        """The tensors, by name, that stand for a matrix of floating point numbers; none of them needs gradients."""
        raise NotImplementedError

    def decode(self, held: Mapping[str, Tensor], columns: int) -> Tensor:
        """The matrix (rows, columns) in float32 that these tensors stand for."""
        raise NotImplementedError

    def rows(self, held: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The tensors that stand for some rows of the matrix."""
        return {k: t[index] for k, t in held.items()}


class CodecSite(Site):
    """A linear layer whose weight is stored in fewer bits, frozen; the weight that adapters see is what it stands for.

    Writing a weight quantises it again. A subclass names its `layers` and `codec`, and reads and writes.
    """

    layers: ClassVar[tuple[str, ...]] = ()

    def size(self) -> tuple[int, ...]:
        return self.layer.out_features, self.layer.in_features

    def _set(self, key: str, value: Tensor) -> None:
        held = getattr(self.layer, key, None)
        if key != "bias":
            self.encode(value.detach())
        elif isinstance(held, nn.Parameter):
            super()._set(key, value)
        elif held is not None:  # some keep it as a bare tensor
            self.layer.bias = value.detach().to(held.dtype)

    def encode(self, w: Tensor) -> None:
        """Quantise a weight in the layer's layout, and put the new tensors in the place of the old ones."""
        raise NotImplementedError

    def plain(self, w: Tensor, b: Tensor | None = None) -> nn.Module:
        made: Any = bare_linear(self.inp, self.out)
        made.weight = frozen(self.stored(w), self.dtype)
        made.bias = frozen(self.bias if b is None else b, self.dtype)
        return made.train(self.layer.training)


def frozen(t: Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    """A tensor as a parameter that is not trained, of its own and in this number format."""
    return None if t is None else nn.Parameter(t.detach().to(dtype).contiguous(), requires_grad=False)

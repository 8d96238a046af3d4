"""C3A: https://arxiv.org/abs/2407.19342

W' = W + C / in, where C is cut into blocks of b by b, each a circulant matrix: C_ji[p, q] = k_ji[(q - p) mod b], with a
trained kernel k (out / b, in / b, b). The rank of the update is not bounded by its parameters.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, listing
from ..method import Init, Method, Slot, normal, zeros
from ..sites import Site
from .fourierft import FOURIER_TARGETS


def spread(gain: float, both: bool) -> Init:
    """Uniform within sqrt(gain / fan), the fan that of W: inputs, and with `both` outputs besides."""

    def init(t: Tensor, generator: Generator) -> object:
        out, inp = (n * t.shape[2] for n in t.shape[:2])
        bound = (gain / (inp + out if both else inp)) ** 0.5
        return t.uniform_(-bound, bound, generator=generator)

    return init


STARTS: dict[Any, Init] = {
    True: zeros,
    False: spread(6, True),
    "xavier_uniform": spread(6, True),
    "kaiming_uniform": spread(1, False),
    "gaussian": normal(),
}


@dataclass(kw_only=True)
class C3AConfig(AdapterConfig, kind="C3A"):
    """Circular convolution adaptation."""

    positive = ("block_size",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format
    rank_field: ClassVar[str] = "block_size"
    patterns: ClassVar = {"block_size": "block_size_pattern"}

    block_size: int = 256  # b; must divide inputs and outputs
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or c3a_only
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    block_size_pattern: dict[str, int] | None = field(default_factory=dict)  # b by module name or regular expression
    init_weights: bool | Literal["gaussian", "kaiming_uniform", "xavier_uniform"] | None = (
        "xavier_uniform"  # True: zero
    )

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.init_weights not in STARTS:
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose one of {listing(STARTS)}")
        return wrong


class C3A(Method):
    """See the head of this file."""

    name, prefix, defaults = "C3A", "c3a_", FOURIER_TARGETS

    def slots(self, site: Site, cfg: C3AConfig) -> dict[str, Slot]:
        (out, columns), b = site.matrix, cfg.block_size
        if out % b or columns % b:
            raise ConfigError(
                f"`block_size`={b} must divide both sides of a weight, and this one is {out} by {columns}"
            )
        return {"k": Slot(name="c3a_kernel", shape=(out // b, columns // b, b), init=STARTS[cfg.init_weights])}

    def scaling(self, site: Site, cfg: C3AConfig) -> float:
        return 1 / site.matrix[1]

    def weight(self, w: Tensor, a: Any) -> Tensor:
        at = torch.arange(a.k.shape[2], device=a.k.device)
        blocks = a.k[..., (at - at.unsqueeze(1)) % len(at)]  # (j, i, p, q)
        return a.site.add(w, a.scale * blocks.permute(0, 2, 1, 3).reshape(a.site.shape))

    def direct(self, site: Site, cfg: C3AConfig) -> bool:
        return super().direct(site, cfg) and site.kind == "linear"

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        """Each block is a circular correlation, which the Fourier transform makes a product."""
        number = torch.promote_types(x.dtype, torch.float32)
        blocks = torch.fft.rfft(x.to(number).unflatten(-1, (-1, a.k.shape[2])))
        product = torch.einsum("...if,jif->...jf", blocks, torch.fft.rfft(a.k.to(number)).conj())
        return y + a.scale * torch.fft.irfft(product, n=a.k.shape[2]).flatten(-2).to(x.dtype)

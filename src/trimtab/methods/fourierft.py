"""FourierFT: https://arxiv.org/abs/2405.03003

W' = W + s Re(F^-1(E)): the inverse discrete Fourier transform of a spectrum E (out, in) that is zero but for n entries,
which are trained. Where they are is drawn from a seed, the same in all layers of one shape. The kernel of a convolution
is flattened into `in`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, normal, zeros
from ..sites import Site
from .targets import LORA_TARGETS

FOURIER_TARGETS = LORA_TARGETS | {kind: ["mlp.c_proj"] for kind in ("gpt2", "gpt_bigcode")}


@dataclass(kw_only=True)
class SpectralConfig(AdapterConfig):
    """What methods have in common that train some coefficients of a transform of the update."""

    positive = ("n_frequency",)

    patterns: ClassVar = {"n_frequency": "n_frequency_pattern"}

    n_frequency: int = 1000  # trained coefficients, a layer
    scaling: float = 150.0  # factor before the update
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    random_loc_seed: int | None = 777  # seed of where the coefficients are
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved
    n_frequency_pattern: dict[str, int] | None = field(default_factory=dict)  # by module name or regular expression
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    init_weights: bool = False  # start at zero, without effect; False: normal

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.random_loc_seed is None:
            wrong.append("`random_loc_seed`=None: nothing could find the coefficients of a file again; give a number")
        return wrong


@dataclass(kw_only=True)
class FourierFTConfig(SpectralConfig, kind="FOURIERFT"):
    """Fourier transform for fine-tuning: trains a few frequencies of the update."""

    own_bias: ClassVar[str] = "fourier_only"


class Spectral(Method):
    """A method that trains some coefficients, `spectrum`, of a transform of the update."""

    def slots(self, site: Site, cfg: SpectralConfig) -> dict[str, Slot]:
        total, n = math.prod(site.matrix), cfg.n_frequency
        if n > total:
            raise ConfigError(f"`n_frequency`={n} is more than the {total} entries of this weight; give fewer")
        where = Slot(name=f"{self.prefix}where", shape=(n,), init=drawn(total, cfg.random_loc_seed), kept=False)
        where.dtype = torch.int64
        return {"spectrum": self.spectrum(n, cfg), "where": where}

    def spectrum(self, n: int, cfg: SpectralConfig) -> Slot:
        """The trained coefficients."""
        return Slot(name=f"{self.prefix}spectrum", shape=(n,), init=zeros if cfg.init_weights else normal())

    def scaling(self, site: Site, cfg: SpectralConfig) -> float:
        return cfg.scaling

    def coefficients(self, a: Any) -> Tensor:
        """All coefficients, (out, columns)."""
        flat = torch.zeros(math.prod(a.site.matrix), dtype=a.spectrum.dtype, device=a.spectrum.device)
        return flat.index_copy(0, a.where, a.spectrum).view(a.site.matrix)

    def transform(self, c: Tensor, a: Any) -> Tensor:
        """The update that coefficients (out, columns) mean, without its factor."""
        raise NotImplementedError

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, a.scale * self.transform(self.coefficients(a), a).view(a.site.shape))


class FourierFT(Spectral):
    """See the head of this file."""

    name, prefix, defaults = "FOURIERFT", "fourierft_", FOURIER_TARGETS

    def transform(self, c: Tensor, a: Any) -> Tensor:
        return torch.fft.ifft2(c.to(torch.promote_types(c.dtype, torch.float32))).real.to(c.dtype)


def drawn(total: int, seed: int | None) -> Any:
    """Fill with different indices below `total`, drawn from a seed of their own, or from the adapter's without one."""

    def init(t: Tensor, generator: Generator) -> object:
        own = generator if seed is None else Generator().manual_seed(seed)
        return t.copy_(torch.randperm(total, generator=own)[: len(t)])

    return init

"""WaveFT: https://arxiv.org/abs/2505.12532

W' = W + s IDWT(C): the inverse wavelet transform, in two dimensions and one level, of coefficients C (out, in) that are
zero but for n entries, which are trained; or W' = W + s C without it. Where they are is drawn from a seed. C is padded
evenly to the size whose transform covers W, and the transform cut back evenly. A convolution's kernel is flattened.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..method import Slot, normal, zeros
from ..sites import Site
from .fourierft import FOURIER_TARGETS, Spectral, SpectralConfig


@dataclass(kw_only=True)
class WaveFTConfig(SpectralConfig, kind="WAVEFT"):
    """Wavelet fine-tuning: trains a few wavelet coefficients of the update."""

    own_bias: ClassVar[str] = "waveft_only"

    n_frequency: int = 2592  # trained coefficients, a layer
    scaling: float = 25.0  # factor before the update
    wavelet_family: str = "db1"  # db1 is Haar's; others (dbN, symN, coifN) are asked of the package PyWavelets
    use_idwt: bool = True  # False: the coefficients are the update
    proportional_parameters: bool = False  # share the coefficients out by the layers' sizes
    init_weights: bool = True  # start at zero, without effect; False: random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        try:
            filters(self.wavelet_family)
        except ConfigError as error:
            wrong.append(str(error))
        return wrong

    def changes(self, path: str) -> dict[str, Any]:
        share = vars(self).get("shares", {}).get(path)
        return super().changes(path) | ({} if share is None else {"n_frequency": share})


@cache
def filters(family: str) -> Tensor:
    """The two filters of reconstruction, low and high pass, (2, length). Raises `ConfigError` for one not known."""
    if family == "db1":
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    try:
        import pywt
    except ImportError:
        raise ConfigError(
            f"`wavelet_family`={family!r} needs the package PyWavelets (pip install PyWavelets)"
        ) from None
    known = [name for kind in ("db", "sym", "coif") for name in pywt.wavelist(kind)]
    if family not in known:
        raise ConfigError(f"`wavelet_family`={family!r} is unknown; choose one of {', '.join(known)}")
    wavelet = pywt.Wavelet(family)
    return torch.tensor([wavelet.rec_lo, wavelet.rec_hi], dtype=torch.float64)


class WaveFT(Spectral):
    """See the head of this file."""

    name, prefix, defaults = "WAVEFT", "waveft_", FOURIER_TARGETS

    def prepare(self, cfg: WaveFTConfig, sites: Mapping[str, Site]) -> None:
        """Share the coefficients of all layers out by size, rounded; patterns have no say then."""
        if not cfg.proportional_parameters or not sites:
            return
        sizes = {path: math.prod(site.matrix) for path, site in sites.items()}
        per = cfg.n_frequency * len(sizes) / sum(sizes.values())
        vars(cfg)["shares"] = {path: max(1, round(per * size)) for path, size in sizes.items()}

    def spectrum(self, n: int, cfg: SpectralConfig) -> Slot:
        return Slot(name=f"{self.prefix}spectrum", shape=(n,), init=zeros if cfg.init_weights else normal(0.01))

    def transform(self, c: Tensor, a: Any) -> Tensor:
        if not a.cfg.use_idwt:
            return c
        bank = filters(a.cfg.wavelet_family).to(c.device, torch.promote_types(c.dtype, torch.float32))
        rows, columns = (half(n, bank) for n in c.shape)
        padded = F.pad(c.to(bank.dtype), (*margins(c.shape[1], 2 * columns), *margins(c.shape[0], 2 * rows)))
        # the right half of C is high pass along the rows' axis, and the lower half along the columns'
        parts = padded.view(2, rows, 2, columns).transpose(0, 2).reshape(2 * rows, 2 * columns)
        along = synthesis(parts, c.shape[0], bank)
        return synthesis(along.T, c.shape[1], bank).T.to(c.dtype)


def half(n: int, bank: Tensor) -> int:
    """How many coefficients of each of the two filters make n values."""
    return math.ceil((n + bank.shape[1] - 2) / 2)


def margins(n: int, total: int) -> tuple[int, int]:
    """What stands before and after n things in the middle of a total."""
    return (total - n) // 2, total - n - (total - n) // 2


def synthesis(c: Tensor, n: int, bank: Tensor) -> Tensor:
    """The inverse transform along the first axis of coefficients (low pass first): the n values in its middle."""
    pairs = c.view(2, -1, c.shape[1]).permute(2, 0, 1)
    full = F.conv_transpose1d(pairs, bank.unsqueeze(1), stride=2)[:, 0, bank.shape[1] - 2 : c.shape[0]]
    before, _ = margins(n, full.shape[1])
    return full[:, before : before + n].T

"""PSOFT: https://arxiv.org/abs/2505.11235

W' = W + B (diag(b) R diag(a) - I) A, where B A is the part of W by its r largest singular values, and R (r, r) is
orthogonal: the Cayley transform of a skew-symmetric Q, of which the upper triangle is trained. With B = U S and A = V
the angles within that part stay. A and B are made from W again on loading; R means the signs that the singular vectors
had in training, which a file notes (see `signs`). The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Init, Method, Slot, normal, ones
from ..sites import Site
from .rotation import bounded, cayley, neumann, skew
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class PsoftConfig(AdapterConfig, kind="PSOFT"):
    """Orthogonal fine-tuning in the principal subspace of a weight."""

    positive = ("r",)
    shares = ("psoft_dropout",)

    r: int = 32  # dimensions of that subspace
    psoft_alpha: int = 32  # kept for the file format: what it multiplies is divided by it too
    psoft_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    ab_svd_init: Literal["psoft_init", "pissa_init"] = "psoft_init"  # B = U S, A = V, or sqrt(S) in each of them
    psoft_svd: Literal["full", "lowrank"] = "full"  # exact, or `torch.svd_lowrank`
    psoft_svd_lowrank_niter: int = 10  # subspace iterations of the latter
    random_seed: int = 0  # and its seed
    psoft_orth: bool = True  # R is orthogonal; False: any matrix
    psoft_mag_b: bool = True  # train b
    psoft_mag_a: bool = True  # train a
    use_cayley_neumann: bool = False  # the transform by a Neumann series: faster, and not quite orthogonal
    num_cayley_neumann_terms: int = 5  # length of that series
    cayley_neumann_eps: float | None = None  # most that the norm of Q may be in it, in (0, 1); None: any
    init_weights: bool = True  # start at R = I, without effect; False: near it
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.r == 1 and self.psoft_orth:
            wrong.append("`r`=1 leaves nothing to rotate; take at least 2")
        if self.ab_svd_init not in ("psoft_init", "pissa_init"):
            wrong.append(f"`ab_svd_init`={self.ab_svd_init!r} is unknown; choose 'psoft_init' or 'pissa_init'")
        if self.psoft_svd not in ("full", "lowrank"):
            wrong.append(f"`psoft_svd`={self.psoft_svd!r} is unknown; choose 'full' or 'lowrank'")
        if self.psoft_svd_lowrank_niter < 0:
            wrong.append(f"`psoft_svd_lowrank_niter`={self.psoft_svd_lowrank_niter} must not be negative")
        if self.use_cayley_neumann and self.num_cayley_neumann_terms < 2:
            wrong.append(
                f"`num_cayley_neumann_terms`={self.num_cayley_neumann_terms} must be at least 2: one is no rotation"
            )
        if self.cayley_neumann_eps is not None and not 0 < self.cayley_neumann_eps < 1:
            wrong.append(f"`cayley_neumann_eps`={self.cayley_neumann_eps} must be in (0, 1), or None")
        return wrong


class Psoft(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "PSOFT", "psoft_", "psoft_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: PsoftConfig) -> dict[str, Slot]:
        (out, columns), r = site.matrix, cfg.r
        if r > min(out, columns):
            raise ConfigError(f"`r`={r} is above the {min(out, columns)} singular values of this weight")
        std = 0.0 if cfg.init_weights else 0.1
        shape, start = ((r * (r - 1) // 2,), normal(std)) if cfg.psoft_orth else ((r, r), near_identity(std))
        slots = {"R": Slot(name="psoft_R", shape=shape, init=start, module=True)}
        for key, trained in (("b", cfg.psoft_mag_b), ("a", cfg.psoft_mag_a)):
            if trained:
                slots[key] = Slot(name="psoft_R", part=f"vector_{key}", shape=(r,), init=ones, module=True)
        slots["A"] = Slot(name="psoft_A", shape=(r, columns), kept=False, signs=0)
        slots["B"] = Slot(name="psoft_B", shape=(out, r), kept=False, signs=1)
        return slots

    def derive(self, a: Adapter) -> None:
        u, s, v = principal(a.site.weight().detach().reshape(a.site.matrix), a.cfg)
        if a.cfg.ab_svd_init == "pissa_init":
            v, s = s.sqrt().unsqueeze(1) * v, s.sqrt()
        a.B.copy_(u * s)
        a.A.copy_(v)

    def rotation(self, a: Any) -> Tensor:
        """diag(b) R diag(a), (r, r)."""
        cfg, r = a.cfg, a.R
        if cfg.psoft_orth and cfg.use_cayley_neumann:
            v = bounded(r, cfg.cayley_neumann_eps) if cfg.cayley_neumann_eps else r
            r = neumann(skew(v), cfg.num_cayley_neumann_terms)
        elif cfg.psoft_orth:
            r = cayley(skew(r))
        r = a.b.unsqueeze(1) * r if a.has("b") else r
        return r * a.a if a.has("a") else r

    def up(self, a: Any) -> Tensor:
        """B (diag(b) R diag(a) - I), (out, r)."""
        return a.scale * a.B @ (self.rotation(a) - torch.eye(a.cfg.r, dtype=a.B.dtype, device=a.B.device))

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, (self.up(a) @ a.A).view(a.site.shape))

    def direct(self, site: Site, cfg: PsoftConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        h = a.site.op(a.drop(x), a.A.view(-1, a.site.inp, *kernel))
        return y + a.site.up(h, self.up(a).view(a.site.out, -1, *(1 for _ in kernel)))


def near_identity(std: float) -> Init:
    """A start at the identity plus normal numbers."""

    def init(t: Tensor, generator: Generator) -> object:
        return nn.init.eye_(t).add_(torch.empty_like(t).normal_(0.0, std, generator=generator))

    return init


def principal(w: Tensor, cfg: PsoftConfig) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), S (r,) and V (r, in) of the r largest singular values; the same W gives the same ones."""
    w, r = w.to(torch.promote_types(w.dtype, torch.float32)), cfg.r
    if cfg.psoft_svd == "full":
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return u[:, :r], s[:r], v[:r]
    with torch.random.fork_rng(devices=[w.device] if w.is_cuda else []):
        torch.manual_seed(cfg.random_seed)
        u, s, v = torch.svd_lowrank(w, q=r, niter=cfg.psoft_svd_lowrank_niter)
    return u, s, v.mT

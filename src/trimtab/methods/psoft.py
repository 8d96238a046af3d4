"""PSOFT: https://openreview.net/forum?id=FSHrinMArK (https://arxiv.org/abs/2505.11235)

W' = W + B (diag(b) R diag(a) - I) A: what W does in its r principal directions, B A = U_r S_r V_r, is turned by a
rotation R (r, r), the Cayley transform of a skew-symmetric Q, and scaled on both sides. A and B are made of W; Q, a and
b are trained. Without `psoft_orth`, R is any matrix. The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Init, Method, Slot, normal, ones, zeros
from ..sites import Site
from .rotation import cayley, cayley_neumann, skew
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class PsoftConfig(AdapterConfig, kind="PSOFT"):
    """Orthogonal fine-tuning in the principal subspace of a weight."""

    r: int = 32  # directions of the subspace
    psoft_alpha: int = 32  # kept for the file format; the subspace is made so that it has no effect
    psoft_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    ab_svd_init: Literal["psoft_init", "pissa_init"] = "psoft_init"  # B = U S, A = V; or both with the root of S
    psoft_svd: Literal["full", "lowrank"] = "full"  # an exact decomposition, or a randomised one
    psoft_svd_lowrank_niter: int = 10  # iterations of the latter
    random_seed: int = 0  # its seed
    psoft_orth: bool = True  # R is a rotation; False: any matrix
    psoft_mag_b: bool = True  # scale what comes out of R
    psoft_mag_a: bool = True  # scale what goes into R
    use_cayley_neumann: bool = False  # a series instead of an inverse
    num_cayley_neumann_terms: int = 5  # its terms
    cayley_neumann_eps: float | None = None  # bound of the Frobenius norm of Q in the series, in (0, 1); None: none
    init_weights: bool = True  # without effect at first; False: random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.r < 1:
            wrong.append(f"`r`={self.r} must be at least 1")
        if not 0 <= self.psoft_dropout < 1:
            wrong.append(f"`psoft_dropout`={self.psoft_dropout} must be in [0, 1)")
        for name, allowed in (("ab_svd_init", ("psoft_init", "pissa_init")), ("psoft_svd", ("full", "lowrank"))):
            if (value := getattr(self, name)) not in allowed:
                wrong.append(f"`{name}`={value!r} is unknown; choose {allowed[0]!r} or {allowed[1]!r}")
        if self.num_cayley_neumann_terms < 1:
            wrong.append(f"`num_cayley_neumann_terms`={self.num_cayley_neumann_terms} must be at least 1")
        if self.cayley_neumann_eps is not None and not 0 < self.cayley_neumann_eps < 1:
            wrong.append(f"`cayley_neumann_eps`={self.cayley_neumann_eps} must be in (0, 1)")
        return wrong


def identity(t: Tensor, generator: Any) -> object:
    """The unit matrix."""
    return t.copy_(torch.eye(len(t)))


class Psoft(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "PSOFT", "psoft_", "psoft_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: PsoftConfig) -> dict[str, Slot]:
        (out, columns), r = site.matrix, cfg.r
        if r > min(out, columns):
            raise ConfigError(f"`r`={r} is more than the {min(out, columns)} directions that this weight has")
        starts: tuple[Init, Init] = (zeros if cfg.psoft_orth else identity, ones)
        core, scale = starts if cfg.init_weights else (normal(0.1), normal())
        trained = {"weight": ((r * (r - 1) // 2,) if cfg.psoft_orth else (r, r), core)}
        trained |= {"vector_b": ((r,), scale)} if cfg.psoft_mag_b else {}
        trained |= {"vector_a": ((r,), scale)} if cfg.psoft_mag_a else {}
        slots = {
            part: Slot(name="psoft_R", part=part, shape=shape, init=init, module=True)
            for part, (shape, init) in trained.items()
        }
        slots["A"] = Slot(name="psoft_A", shape=(r, columns), kept=False)
        slots["B"] = Slot(name="psoft_B", shape=(out, r), kept=False)
        return slots

    def derive(self, a: Adapter) -> None:
        w = a.site.weight().detach().reshape(a.site.matrix)
        w, r = w.to(torch.promote_types(w.dtype, torch.float32)), a.cfg.r
        if a.cfg.psoft_svd == "full":
            u, s, v = torch.linalg.svd(w, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(a.cfg.random_seed)
                u, s, v = torch.svd_lowrank(w.cpu(), q=r, niter=a.cfg.psoft_svd_lowrank_niter)
            v = v.mT
        left, right = (s, torch.ones_like(s)) if a.cfg.ab_svd_init == "psoft_init" else (s.sqrt(), s.sqrt())
        a.B.copy_(u[:, :r] * left[:r])
        a.A.copy_(right[:r, None] * v[:r])

    def core(self, a: Any) -> Tensor:
        """diag(b) R diag(a) - I, (r, r)."""
        r, cfg = a.tensor("weight"), a.cfg
        if cfg.psoft_orth:
            q = skew(r.unsqueeze(0), cfg.r)[0]
            if cfg.use_cayley_neumann and cfg.cayley_neumann_eps is not None:
                q = q * (cfg.cayley_neumann_eps / q.norm().clamp(min=cfg.cayley_neumann_eps))
            r = cayley_neumann(q, cfg.num_cayley_neumann_terms) if cfg.use_cayley_neumann else cayley(q)
        r = r * a.vector_a if a.has("vector_a") else r
        r = a.vector_b.unsqueeze(1) * r if a.has("vector_b") else r
        return r - torch.eye(cfg.r, dtype=r.dtype, device=r.device)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, (a.B @ self.core(a) @ a.A).view(a.site.shape))

    def direct(self, site: Site, cfg: PsoftConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        down = (self.core(a) @ a.A).view(-1, a.site.inp, *kernel)
        return y + a.site.up(a.site.op(a.drop(x), down), a.B.view(*a.B.shape, *(1 for _ in kernel)))

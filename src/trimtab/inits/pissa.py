"""PiSSA (https://arxiv.org/abs/2404.02948): the principal part of W is trained.

With W = U S V: s B = U_r sqrt(S_r s), A = sqrt(S_r / s) V_r for the r largest singular values; the base keeps the rest.
"pissa_niter_N" takes a randomised SVD with N subspace iterations (https://arxiv.org/abs/0909.4061) for the exact one.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from ..sites import Site
from .split import Split


class Pissa(Split):
    """See the head of this file."""

    name = "pissa"

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if option and not option.isdecimal():
            return f"{option!r} is not a number of iterations; write for example 'pissa_niter_4'"
        return super().refuse(site, cfg, option)

    def split(self, w: Tensor, r: int, a: Any, option: str) -> tuple[Tensor, Tensor]:
        u, s, v = randomised_svd(w, r, int(option)) if option else torch.linalg.svd(w, full_matrices=False)
        root = (s[..., :r] / a.scale).sqrt()
        return u[..., :r] * root.unsqueeze(-2), root.unsqueeze(-1) * v[..., :r, :]


def randomised_svd(w: Tensor, r: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular values and vectors of W, nearly; the same W gives the same ones, so a loaded base too."""
    seeded = Generator().manual_seed(0)
    start = torch.randn(w.shape[-1], min(r, *w.shape[-2:]), generator=seeded, device="cpu")
    q = torch.linalg.qr(w @ start.to(w))[0]
    for _ in range(iterations):
        q = torch.linalg.qr(w @ torch.linalg.qr(w.mT @ q)[0])[0]
    u, s, v = torch.linalg.svd(q.mT @ w, full_matrices=False)
    return q @ u, s, v

"""Orthogonal start (https://datta0.github.io/posts/rethink-lora-init/): A and B random, yet without effect.

With an orthogonal Q (r, r): A = Q_odd^T X / 10, B = Y Q_even / 10 for normal X and Y. Neither is zero, and B A = 0.
"""

from typing import Any

import torch

from ..layer import seeded
from ..method import Start
from ..sites import Site
from .split import factors


class Orthogonal(Start):
    """See the head of this file. Embeddings keep the default start, because files of PEFT mean it so."""

    name = "orthogonal"

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if cfg.r % 2:
            return f"`r`={cfg.r} must be even: half of Q goes into A, half into B"
        grouped = site.kind == "conv" and site.shape[1] != site.inp
        return "the groups of a grouped convolution have no product B A in common" if grouped else None

    def __call__(self, a: Any, option: str) -> None:
        if a.site.kind == "embedding":
            return
        generator = seeded(a.layer.path, a.name, self.name)
        up, down = factors(a)
        r = up.shape[-1]
        q = torch.linalg.qr(torch.randn(r, r, generator=generator, device="cpu"))[0]
        x = torch.randn(r // 2, down.shape[-1], generator=generator, device="cpu")
        y = torch.randn(up.shape[-2], r // 2, generator=generator, device="cpu")
        down.copy_(q[0::2].T @ x / 10)
        up.copy_(y @ q[1::2] / 10)

"""MiCA (https://arxiv.org/abs/2604.01694): A is trained in the minor directions of W.

With W = U S V: B = the columns of U of the r smallest singular values, which stay as they are, and A = 0.
"""

from typing import Any

import torch

from ..method import Start
from ..sites import Site
from .split import factors


class Mica(Start):
    """See the head of this file."""

    name, frozen = "mica", ("B",)

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if site.kind == "conv" and site.shape[1] != site.inp:
            return "the weight of a grouped convolution is no single matrix"
        few = min(site.matrix[-2:])
        return f"`r`={cfg.r} directions are needed, and W has {few}" if cfg.r > few else None

    def __call__(self, a: Any, option: str) -> None:
        up, down = factors(a)
        w = a.site.weight().detach()
        w = w.to(torch.promote_types(w.dtype, torch.float32)).reshape(-1, *a.site.matrix[-2:])
        up.copy_(torch.linalg.svd(w, full_matrices=False)[0][..., -up.shape[-1] :])
        down.zero_()

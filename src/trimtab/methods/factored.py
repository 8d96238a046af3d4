"""What methods have in common whose update is a product of two matrices, each made of the tensors in its own way."""

from typing import Any

import torch
from torch import Tensor

from ..method import Method
from ..sites import Site


class Factored(Method):
    """W' = W + s up down. The kernel of a convolution is flattened into the columns of `down`."""

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """`down` (rank, columns) and `up` (out, rank)."""
        raise NotImplementedError

    def weight(self, w: Tensor, a: Any) -> Tensor:
        down, up = self.factors(a)
        return a.site.add(w, a.scale * (up @ down).view(a.site.shape))

    def direct(self, site: Site, cfg: Any) -> bool:
        return site.pointwise and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        down, up = self.factors(a)
        h = a.site.op(a.drop(x), down.reshape(-1, a.site.inp, *kernel))
        return torch.add(y, a.site.up(h, up.reshape(*up.shape, *(1 for _ in kernel))), alpha=a.scale)

"""What methods have in common whose update is a product of matrices, each made of the tensors in its own way."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..method import Method
from ..sites import Site


class Factored(Method):
    """W' = W + s up .. down. The kernel of a convolution is flattened into the columns of `down`."""

    def factors(self, a: Any) -> Sequence[Tensor]:
        """`down` (rank, columns), perhaps others, and `up` (out, rank), in the order in which they act on an input."""
        raise NotImplementedError

    def weight(self, w: Tensor, a: Any) -> Tensor:
        update = reduce(lambda done, factor: factor @ done, self.factors(a))
        return a.site.add(w, a.scale * update.view(a.site.shape))

    def direct(self, site: Site, cfg: Any) -> bool:
        return site.pointwise and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        down, *others = self.factors(a)
        h = a.site.op(a.drop(x), down.reshape(-1, a.site.inp, *kernel))
        for factor in others:
            h = a.site.up(h, factor.reshape(*factor.shape, *(1 for _ in kernel)))
        return torch.add(y, h, alpha=a.scale)

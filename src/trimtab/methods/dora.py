"""DoRA (https://arxiv.org/abs/2402.09353), what it adds to LoRA: W' = m (W + s B A) / |W + s B A|.

Norms are taken by output row, and no gradient flows through them (section 4.3). `m` has one entry an output feature.
"""

from typing import Any

import torch
from torch import Tensor

from ..method import Slot
from ..sites import Site


def magnitude(site: Site) -> Slot:
    """The slot of m; convolutions keep it in the shape that broadcasts over their output."""
    shape = (1, site.out, *(1 for _ in site.shape[2:])) if site.kind == "conv" else (site.out,)
    return Slot(name="lora_magnitude_vector", shape=shape, module=True, file="lora_magnitude_vector")


def row_norm(w: Tensor) -> Tensor:
    """The Euclidean norm of each output row, (out,)."""
    return w.flatten(1).norm(dim=1)


def start(a: Any, updated: Tensor) -> None:
    """Set m to the norms that W + s B A has, so that the adapter begins without effect."""
    if not a.m.is_meta:
        a.m.copy_(row_norm(updated).view(a.m.shape))


def rescale(updated: Tensor, a: Any) -> Tensor:
    """The weight from W + s B A."""
    return updated * (a.m.flatten() / row_norm(updated.detach())).view(-1, *(1 for _ in updated.shape[1:]))


def rescale_output(y: Tensor, update: Tensor, updated: Tensor, a: Any) -> Tensor:
    """The layer's result from the base's `y`, the adapter's `update` of it, and W + s B A."""
    axis = (-1, *(1 for _ in a.B.shape[2:]))
    bias = a.site.bias.view(axis) if a.site.bias is not None else torch.zeros((), device=y.device)
    return (a.m.flatten() / row_norm(updated.detach())).view(axis) * (y - bias + update) + bias

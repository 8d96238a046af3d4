"""Starts that split the base weight, W = residual + s B A, and train the part B A: what they have in common."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Start
from ..sites import Site


class Split(Start):
    """A start whose part of W goes into the adapter and out of the base.

    Ranks beyond those of W begin without effect, as by default; so do embeddings, because files of PEFT mean it so.
    """

    changes_base: ClassVar[bool] = True

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if site.refusal:
            return f"the rest of W cannot be stored as {site.codec}, because {site.refusal}"
        grouped = site.kind == "conv" and site.shape[1] != site.inp
        return "the weight of a grouped convolution is no single matrix to split" if grouped else None

    def split(self, w: Tensor, r: int, a: Any, option: str) -> tuple[Tensor, Tensor]:
        """B (experts, out, r) and A (experts, r, in) from W (experts, out, in), for the part s B A of W."""
        raise NotImplementedError

    def __call__(self, a: Any, option: str) -> None:
        if a.site.kind == "embedding":
            return
        w = a.site.weight().detach()
        w = w.to(torch.promote_types(w.dtype, torch.float32))
        b_held, a_held = factors(a)
        b, a_new = self.split(w.reshape(b_held.shape[0], a.site.out, -1), b_held.shape[-1], a, option)
        b_held[..., : b.shape[-1]].copy_(b)
        a_held[..., : b.shape[-1], :].copy_(a_new)
        a.site.write(w - a.scale * (b @ a_new).view(w.shape))


def factors(a: Any) -> tuple[Tensor, Tensor]:
    """Views of an adapter's B (experts, out, r) and A (experts, r, in), a kernel flattened into `in`."""
    experts = getattr(a.site, "experts", 1)
    return a.B.view(a.site.out, -1, experts).permute(2, 0, 1), a.A.view(experts, a.A.shape[0] // experts, -1)

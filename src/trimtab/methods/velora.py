"""VeLoRA (https://arxiv.org/abs/2405.17991), a variant of LoRA that trains A from compressed inputs.

For the backward pass, each group z of an input's features is kept as one number, z . v, and read there as c (z . v) v,
where v is the direction of the mean group and c a constant. The gradient of A is nearly right so, all others exactly.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import ConfigError, listing
from ..method import Slot, zeros
from ..sites import Site
from .lora import Lora, LoraConfig
from .options import Options

DIRECTIONS = ("batch_average", "batch_average_once", "random")


@dataclass(kw_only=True)
class VeloraConfig(Options, field="velora_config"):
    """How inputs are compressed."""

    num_groups: int = 64  # groups of features, of which one number each is kept
    scale: float = 1.0  # factor on what is read back
    init_type: Literal["batch_average", "batch_average_once", "random"] = "batch_average"  # v: of each batch, or fixed

    def mistakes(self) -> list[str]:
        wrong = [] if self.num_groups > 0 else [f"`num_groups`={self.num_groups} must be at least 1"]
        if self.init_type not in DIRECTIONS:
            wrong.append(f"`init_type`={self.init_type!r} is unknown; choose one of {listing(DIRECTIONS)}")
        return wrong


class Velora(Lora):
    """See the head of this file."""

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.velora_config is not None

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        if not site.pointwise or site.kind == "embedding":
            raise ConfigError(f"VeLoRA compresses the inputs of A, which {site.kind} layers do not have")
        options = cfg.velora_config
        v = Slot(
            name="lora_velora_embed", shape=(-(-site.inp // options.num_groups),), trainable=False,
            init=unit if options.init_type == "random" else zeros,
        )  # fmt: skip
        return super().slots(site, cfg) | {"v": v}

    def down(self, x: Tensor, rows: Tensor, a: Any) -> Tensor:
        options = a.cfg.velora_config
        if not a.training or not torch.is_grad_enabled():
            return a.site.op(x, rows)
        once = options.init_type == "batch_average_once" and bool(a.v.any())
        if options.init_type != "random" and not once:
            with torch.no_grad():
                a.v.copy_(F.normalize(grouped(x, rows, options.num_groups).flatten(0, -2).mean(0), dim=0))
        return Compressed.apply(x, rows, a.v.detach().clone(), options, a.site)  # type: ignore[no-untyped-call]


class Compressed(torch.autograd.Function):
    """op(x, A), whose backward knows of x no more than one number for each group of features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, v: Tensor, options: VeloraConfig, site: Site) -> Tensor:
        """`rows` is A; `v` (features of a group,)."""
        ctx.save_for_backward(grouped(x, rows, options.num_groups) @ v, rows, v)
        ctx.shape, ctx.scale, ctx.op = x.shape, options.scale, site.op
        return site.op(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and A: `op` is linear in both, so that of x does not depend on x."""
        kept, rows, v = ctx.saved_tensors
        axis = 1 - rows.dim()
        read = (ctx.scale * kept.unsqueeze(-1) * v).flatten(-2)[..., : ctx.shape[axis]].movedim(-1, axis)
        with torch.enable_grad():
            x, a = read.detach().requires_grad_(), rows.detach().requires_grad_()
            h = ctx.op(x, a)
        dx, da = torch.autograd.grad(h, (x, a), grads[0].to(h.dtype))
        return dx, da, None, None, None


def grouped(x: Tensor, rows: Tensor, groups: int) -> Tensor:
    """Inputs, by their features in groups: (..., groups, size), filled up with zeros."""
    x = x.movedim(1 - rows.dim(), -1)
    size = -(-x.shape[-1] // groups)
    return F.pad(x, (0, groups * size - x.shape[-1])).unflatten(-1, (groups, size))


def unit(t: Tensor, generator: Generator) -> object:
    """Start in a random direction."""
    return t.copy_(F.normalize(t.normal_(generator=generator), dim=0))

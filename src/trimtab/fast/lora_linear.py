"""A linear layer with LoRA as one autograd function: y = x W^T + b + s (x A^T) B^T.

Backward needs x, the rank-r features h = x A^T and the frozen W; nothing else is kept, and no input is ever cast. The
factors are cast to the number format of x instead (they are small), so a half-precision base computes in half precision
while the factors themselves stay in float32. Several adapters become one by stacking their factors.

Shape legend: T tokens, i in, o out, r rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method import Adapter
from ..methods.lora import Lora
from ..route import FAST, FastPath, Plan
from ..sites import Conv1DSite, Site


def linear_with_update(
    x: Tensor, into: Tensor, w: Tensor, bias: Tensor | None, a_ri: Tensor, b_or: Tensor, s: float
) -> tuple[Tensor, Tensor]:
    """The result y (..., o) and h (T, r) from x and the adapters' input."""
    y, h_Tr = F.linear(x, w, bias), F.linear(into, a_ri)
    if y.dim() == 2:
        return y.addmm_(h_Tr, b_or.t(), alpha=s), h_Tr
    h_Tr = h_Tr.view(-1, h_Tr.shape[-1])
    y.view(-1, y.shape[-1]).addmm_(h_Tr, b_or.t(), alpha=s)
    return y, h_Tr


class LoraLinear(torch.autograd.Function):
    """See the head of this file. `dropped` is the adapters' input after dropout, or None where it is x itself."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        """Returns y, (..., o)."""
        a_ri = a if a.dtype == x.dtype else a.to(x.dtype)
        b_or = b if b.dtype == x.dtype else b.to(x.dtype)
        into = x if dropped is None else dropped
        y, h_Tr = linear_with_update(x, into, w, bias, a_ri, b_or, s)
        ctx.save_for_backward(into, h_Tr, w, a, b)
        ctx.scale, ctx.dtypes = s, (a.dtype, b.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, dropped, bias, A and B, each only where it is needed."""
        into, h_Tr, w, a, b = ctx.saved_tensors
        a_ri, b_or = a.to(into.dtype), b.to(into.dtype)
        if torch.is_grad_enabled():  # for a second derivative, h has to know where it comes from
            h_Tr = into.reshape(-1, a.shape[1]) @ a_ri.t()
        need_x, need_dropped, _, need_bias, need_a, need_b, _ = ctx.needs_input_grad
        g_To = grads[0].reshape(-1, b_or.shape[0])
        dh_Tr = (g_To @ b_or).mul_(ctx.scale)
        dx = d_dropped = da = db = None
        if need_x:
            dx = g_To @ w
            if not need_dropped:
                dx.addmm_(dh_Tr, a_ri)
            dx = dx.view(into.shape)
        if need_dropped:
            d_dropped = (dh_Tr @ a_ri).view(into.shape)
        if need_a:
            da = (dh_Tr.t() @ into.reshape(-1, a_ri.shape[1])).to(ctx.dtypes[0])
        if need_b:
            db = (g_To.t() @ h_Tr).to(ctx.dtypes[1]).mul_(ctx.scale)
        return dx, d_dropped, None, g_To.sum(0) if need_bias else None, da, db, None


def guard(site: Site, adapters: Sequence[Adapter]) -> str | None:
    """Why these adapters on this layer cannot be fused, or None."""
    if site.kind != "linear" or site.codec:
        return f"a weight stored as {site.codec}" if site.codec else f"a {site.kind} layer"
    if type(site.layer).forward is not nn.Linear.forward and not isinstance(site, Conv1DSite):
        return f"{type(site.layer).__name__} computes in its own way"
    if other := [type(a.method).__name__ for a in adapters if type(a.method) is not Lora]:
        return f"an adapter of {other[0]}"
    if any(a.slots.keys() != {"A", "B"} for a in adapters):
        return "tensors besides A and B (DoRA, bias)"
    if len(adapters) > 1 and any(getattr(a.cfg, a.method.dropout) for a in adapters):
        return "several adapters with dropout"
    return None


def run(x: Tensor, plan: Plan) -> Tensor | None:
    """The layer's result; None for a call that needs the layer itself (hooks, autocast, trained or sharded weight)."""
    site, adapters = plan.site, plan.adapters
    layer: Any = site.layer
    stored = layer._parameters["weight"]
    if stored.requires_grad or type(stored) not in (nn.Parameter, Tensor):
        return None
    if x.dtype != stored.dtype or x.device != stored.device:
        return None
    if layer._forward_hooks or layer._forward_pre_hooks or torch.is_autocast_enabled(x.device.type):
        return None
    w, bias = site.weight(), layer._parameters["bias"]
    if len(adapters) == 1:
        one = adapters[0]
        a, b, s = one.tensor("A"), one.tensor("B"), one.scale
        dropped = one.drop(x) if one.training else x
    else:
        a = torch.cat([each.tensor("A") for each in adapters])
        b = torch.cat([each.scale * each.tensor("B") for each in adapters], dim=1)
        s, dropped = 1.0, x
    if not torch.is_grad_enabled():
        if a.dtype != x.dtype:
            a, b = a.to(x.dtype), b.to(x.dtype)
        return linear_with_update(x, dropped, w, bias, a, b, s)[0]
    return LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, None if dropped is x else dropped, w, bias, a, b, s
    )


FAST.append(FastPath("lora_linear", guard, run))

"""OSF: https://arxiv.org/abs/2504.07097

W = Uh Sh Vh + U0 S0 V0 by its singular values, the k largest and the others; W' = W - U0 S0 V0 + U S V. U (out, l),
S (l) and V (l, in) start at the others and are trained; their gradients lose what lies in the span of Uh and of Vh, so
that what W does best stays. The kernel of a convolution is flattened into `in`.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..config import AdapterConfig, reserved
from ..errors import ConfigError
from ..method import Adapter, Method, Slot, normal
from ..sites import Site


@dataclass(kw_only=True)
class OSFConfig(AdapterConfig, kind="OSF"):
    """Orthogonal subspace fine-tuning: trains the weight's lesser singular directions, and spares the others."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    effective_rank: int | float | None = None  # directions spared: how many, or their share in (0, 1]; None: half
    rank_pattern: dict[str, int | float] | None = None  # the same by a regular expression found anywhere in the path
    init_weights: bool = True  # start at W's own lesser directions, without effect; False: random
    target_svd_config: dict[str, int] | None = reserved(None)

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        ranks = {"effective_rank": self.effective_rank} | {
            f"rank_pattern[{key!r}]": rank for key, rank in (self.rank_pattern or {}).items()
        }
        for name, rank in ranks.items():
            if rank is not None and (rank <= 0 or (rank > 1 and rank != int(rank))):
                wrong.append(f"`{name}`={rank} must be a whole number of at least 1, or a share in (0, 1]")
        return wrong

    def at(self, path: str) -> Self:
        found = (rank for key, rank in (self.rank_pattern or {}).items() if re.search(key, path))
        return replace(self, effective_rank=next(found, self.effective_rank))


class OSF(Method):
    """See the head of this file."""

    name, prefix = "OSF", "osf_"

    def fill(self, cfg: OSFConfig, model_type: str | None) -> None:
        cfg.target_modules = "all-linear" if cfg.target_modules is None else cfg.target_modules

    def slots(self, site: Site, cfg: OSFConfig) -> dict[str, Slot]:
        (out, columns), high = site.matrix, spared(site, cfg)
        low = min(out, columns) - high
        shapes = {"U": (out, low), "S": (low,), "V": (low, columns)}
        slots = {
            k: Slot(name="osf_svd_params", part=f"{k}_low", shape=shape, init=normal(), module=True)
            for k, shape in shapes.items()
        }
        slots |= {f"{k}0": Slot(name=f"osf_{k}_low_init", shape=shape, kept=False) for k, shape in shapes.items()}
        slots["Uh"] = Slot(name="osf_U_high", shape=(out, high), kept=False)
        slots["Vh"] = Slot(name="osf_V_high", shape=(high, columns), kept=False)
        return slots

    def derive(self, a: Adapter) -> None:
        w = a.site.weight().detach().reshape(a.site.matrix)
        u, s, v = torch.linalg.svd(w.to(torch.promote_types(w.dtype, torch.float32)), full_matrices=False)
        high = a.Uh.shape[1]
        parts = {"Uh": u[:, :high], "Vh": v[:high], "U0": u[:, high:], "S0": s[high:], "V0": v[high:]}
        for key, part in parts.items():
            a.tensor(key).copy_(part)

    def start(self, a: Adapter) -> None:
        for key in "USV" if a.cfg.init_weights else "":
            a.tensor(key).copy_(a.tensor(f"{key}0"))

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """(out, 2 l) and (2 l, in), whose product is U S V - U0 S0 V0."""
        orthogonal: Any = Orthogonal.apply
        u, v = orthogonal(a.U, a.Uh), orthogonal(a.V.mT, a.Vh.mT).mT
        return torch.cat([u * a.S, -a.U0 * a.S0], 1), torch.cat([v, a.V0])

    def weight(self, w: Tensor, a: Any) -> Tensor:
        up, down = self.factors(a)
        return a.site.add(w, (up @ down).view(a.site.shape))

    def direct(self, site: Site, cfg: OSFConfig) -> bool:
        """Where two products of rank l, and the gradient of one, cost less than building W' and its gradient do."""
        rank = min(site.matrix) - spared(site, cfg)
        cheap = 5 * rank * sum(site.matrix) < math.prod(site.matrix)
        return super().direct(site, cfg) and site.shape[1] == site.inp and cheap

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        up, down = self.factors(a)
        kernel = a.site.shape[2:]
        h = a.site.op(x, down.view(-1, a.site.inp, *kernel))
        return y + a.site.up(h, up.view(*up.shape, *(1 for _ in kernel)))


def spared(site: Site, cfg: OSFConfig) -> int:
    """k, how many singular directions of a weight stay as they are. Raises `ConfigError` for none or all of them."""
    most, rank = min(site.matrix), cfg.effective_rank
    rank = 0.5 if rank is None else rank
    k = int(rank * most) if isinstance(rank, float) and rank <= 1 else int(rank)
    if not 0 < k < most:
        raise ConfigError(
            f"`effective_rank`={cfg.effective_rank} spares {min(k, most)} of the {most} singular directions of this "
            "weight; at least one must be spared and one left to train"
        )
    return k


class Orthogonal(torch.autograd.Function):
    """The identity, whose gradient loses what lies in the span of a basis."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, basis: Tensor) -> Tensor:
        """`t` (n, l) as it is, and an orthonormal basis (n, k)."""
        ctx.save_for_backward(basis)
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient (n, l) less its projection."""
        (basis,) = ctx.saved_tensors
        return gradient - basis @ (basis.mT @ gradient), None

"""RoAd: https://arxiv.org/abs/2409.00119

W' = R W and b' = R b, where R turns the outputs two by two and stretches them:

    y0' = alpha cos(theta) y0 - alpha sin(theta) y1
    y1' = alpha sin(theta) y0 + alpha cos(theta) y1

In a group of outputs, each of the first half goes with one of the second. A pair has one theta and alpha (road_1), each
of its outputs its own (road_2), or each of the four terms its own (road_4).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, normal, ones, zeros
from ..sites import Site
from .rotation import divided
from .targets import LORA_TARGETS

OWN = {"road_1": (1, 1), "road_2": (1, 2), "road_4": (2, 2)}
"""How many thetas and alphas a pair has: for cosine and sine, and for its two outputs."""


@dataclass(kw_only=True)
class RoadConfig(AdapterConfig, kind="ROAD"):
    """2D rotary adaptation: turns and stretches the outputs in pairs."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"  # what a pair has of its own, see the head of this file
    group_size: int = 64  # outputs in a group: even, and a divisor of the outputs
    init_weights: bool = True  # start at theta = 0 and alpha = 1, without effect; False: normal around them

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.variant not in OWN:
            wrong.append(f"`variant`={self.variant!r} is unknown; choose 'road_1', 'road_2' or 'road_4'")
        if self.group_size < 2 or self.group_size % 2:
            wrong.append(f"`group_size`={self.group_size} must be even and at least 2: a group is made of pairs")
        return wrong


class Road(Method):
    """See the head of this file."""

    name, prefix, defaults = "ROAD", "road_", LORA_TARGETS

    def slots(self, site: Site, cfg: RoadConfig) -> dict[str, Slot]:
        divided(site.out, cfg.group_size, "group_size")
        terms, outputs = OWN[cfg.variant]
        shape = (site.out // 2 * terms * outputs,)
        theta, alpha = (zeros, ones) if cfg.init_weights else (normal(0.5), normal(0.5, mean=1.0))
        return {
            "theta": Slot(name="road_theta", shape=shape, init=theta),
            "alpha": Slot(name="road_alpha", shape=shape, init=alpha),
        }

    def turned(self, y: Tensor, a: Any, axis: int = -1) -> Tensor:
        """R y, for outputs in this axis of `y`."""
        half = a.cfg.group_size // 2
        theta, alpha = (t.view(-1, *OWN[a.cfg.variant], half) for t in (a.theta, a.alpha))
        terms = (alpha * theta.cos())[:, 0], (alpha * theta.sin())[:, -1]
        (cos0, cos1), (sin0, sin1) = (t.expand(-1, 2, -1).unbind(1) for t in terms)
        y0, y1 = y.movedim(axis, -1).unflatten(-1, (-1, 2, half)).unbind(-2)
        turned = torch.stack([cos0 * y0 - sin0 * y1, sin1 * y0 + cos1 * y1], -2)
        return turned.flatten(-3).movedim(-1, axis)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        if w.shape[1] != a.site.inp and w.shape[0] * w.shape[1] // a.site.inp % a.cfg.group_size:
            w = a.site.dense(w)  # pairs reach across the groups of a convolution
        return self.turned(w, a, 0)

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return None if b is None else self.turned(b, a)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return self.turned(y, a, 1 - len(a.site.shape))

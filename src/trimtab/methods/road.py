"""RoAd: https://arxiv.org/abs/2409.00119

y' = R y, so W' = R W and b' = R b: in groups of g, output e and output e + g / 2 are turned and scaled as a pair,
y'_e = c y_e - s y_(e + g / 2) and y'_(e + g / 2) = s y_e + c y_(e + g / 2), with c = alpha cos(theta), s = alpha
sin(theta). A pair has one theta and alpha ("road_1"), each output its own ("road_2"), or its own for c and for s
("road_4").
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, listing
from ..method import Init, Method, Slot, normal, ones, zeros
from ..sites import Site
from .targets import LORA_TARGETS

VARIANTS = {"road_1": 1, "road_2": 2, "road_4": 4}


@dataclass(kw_only=True)
class RoadConfig(AdapterConfig, kind="ROAD"):
    """Rotary adaptation: turns pairs of outputs."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    variant: str = "road_1"  # what a pair shares
    group_size: int = 64  # g; even, and a divisor of the outputs
    init_weights: bool = True  # without effect at first; False: random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.variant not in VARIANTS:
            wrong.append(f"`variant`={self.variant!r} is unknown; choose one of {listing(VARIANTS)}")
        if self.group_size < 2 or self.group_size % 2:
            wrong.append(f"`group_size`={self.group_size} must be even, and at least 2")
        return wrong


class Road(Method):
    """See the head of this file."""

    name, prefix, defaults = "ROAD", "road_", LORA_TARGETS

    def slots(self, site: Site, cfg: RoadConfig) -> dict[str, Slot]:
        if site.out % cfg.group_size:
            raise ConfigError(f"`group_size`={cfg.group_size} must divide the {site.out} outputs of a layer")
        n = site.matrix[0] // 2 * VARIANTS[cfg.variant]
        starts: tuple[Init, Init] = (zeros, ones) if cfg.init_weights else (normal(0.5), shaken_ones)
        return {
            key: Slot(name=f"road_{key}", shape=(n,), init=init)
            for key, init in zip(("theta", "alpha"), starts, strict=True)
        }

    def turned(self, t: Tensor, a: Any, axis: int) -> Tensor:
        """R along an axis of features."""
        g = a.cfg.group_size
        theta, alpha = (p.view(-1, 1 if a.cfg.variant == "road_1" else 2, g // 2) for p in (a.theta, a.alpha))
        c, s = alpha * theta.cos(), alpha * theta.sin()
        if a.cfg.variant == "road_4":  # group by group, what makes c and then what makes s
            c, s = c.view(-1, 2, 2, g // 2)[:, 0], s.view(-1, 2, 2, g // 2)[:, 1]
        parts = t.movedim(axis, -1).unflatten(-1, (-1, 2, g // 2))
        other = torch.stack([-parts[..., 1, :], parts[..., 0, :]], dim=-2)
        return (parts * c + other * s).flatten(-3).movedim(-1, axis)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return self.turned(w, a, 0)

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return b if b is None else self.turned(b, a, 0)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return self.turned(y, a, 1 - len(a.site.shape) if a.site.kind == "conv" else -1)


def shaken_ones(t: Tensor, generator: Any) -> object:
    """Around one."""
    return t.normal_(1.0, 0.5, generator=generator)

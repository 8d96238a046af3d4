"""Adaptive subspace allocation (https://openreview.net/forum?id=8ZdWmpYxT0): which subspaces go on being trained.

Importance is AdaLoRA's (https://arxiv.org/abs/2303.10512): of |parameter x gradient|, the mean over steps times the
mean deviation from it, averaged over each factor. After step t, T + (N - T) ((t1 - t) / (t1 - t0))^e of N subspaces are
left, from N after step t0 to T after step t1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Subspace:
    """The factors A_k and B_k of one layer's adapter, whose moments are kept with the adapter until a decision."""

    a: Any
    k: int

    @property
    def factors(self) -> dict[str, Tensor]:
        """The two factors by slot."""
        return {key: self.a.tensor(key) for key in (f"A{self.k}", f"B{self.k}")}

    @property
    def moments(self) -> Moments:
        """Mean and mean deviation of each factor's sensitivity, of all subspaces of the layer."""
        return vars(self.a).setdefault("moments", {})

    def observe(self, cfg: Any) -> None:
        """Take the gradients of one step into account."""
        for key, t in self.factors.items():
            if t.grad is not None:
                seen = (t.detach() * t.grad).abs()
                mean, deviation = self.moments.get(key, (seen.new_zeros(()), seen.new_zeros(())))
                mean = mean.lerp(seen, 1 - cfg.asa_importance_beta)
                deviation = deviation.lerp((seen - mean).abs(), 1 - cfg.asa_uncertainty_beta)
                self.moments[key] = mean, deviation

    def importance(self) -> float:
        """How much the subspace has mattered since the last decision."""
        seen = [self.moments[key] for key in self.factors if key in self.moments]
        return sum(float((mean * deviation).mean()) for mean, deviation in seen)

    def decide(self, go_on: bool) -> None:
        """Go on training or stop; what was observed is forgotten."""
        for key, t in self.factors.items():
            self.moments.pop(key, None)
            if not go_on:
                t.requires_grad_(False)
                t.grad = None


def allocate(subspaces: Sequence[Subspace], cfg: Any, step: int) -> None:
    """Observe a step, and at every `mask_interval`, or the last, let only the most important subspaces go on."""
    first, last = cfg.init_warmup, cfg.final_warmup
    if not first <= step <= last:
        return
    active = [s for s in subspaces if all(t.requires_grad for t in s.factors.values())]
    for subspace in active:
        subspace.observe(cfg)
    if step > first and (step % cfg.mask_interval == 0 or step == last):
        target, left = cfg.asa_target_subspaces, (last - step) / (last - first)
        kept = target + int((len(subspaces) - target) * left**cfg.asa_schedule_exponent)
        for place, subspace in enumerate(sorted(active, key=Subspace.importance, reverse=True)):
            subspace.decide(place < kept)

"""PEANuT: https://arxiv.org/abs/2410.01870

W' = W + s B H, where a small network makes H (r, in) of W's columns: H = f(A W); then `depth` encoders, H = f(E_i H);
then as many decoders, H = f(D_i H) + what the encoder at the other end read. A is (r, out), B (out, r), E_i and D_i
(r, r). The kernel of a convolution is flattened into `in`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu} | {
    name: getattr(F, name) for name in "gelu hardswish leaky_relu mish relu relu6 sigmoid silu tanh".split()
}


def activation(name: str) -> Callable[[Tensor], Tensor] | None:
    """A function by its name in Transformers, which is asked for those that torch does not have; None if unknown."""
    if name not in ACTIVATIONS:
        try:
            from transformers.activations import ACT2FN
        except ImportError:
            return None
        if name not in ACT2FN or any(True for _ in ACT2FN[name].parameters()):  # no file would hold its parameters
            return None
        ACTIVATIONS[name] = ACT2FN[name]
    return ACTIVATIONS[name]


@dataclass(kw_only=True)
class PeanutConfig(AdapterConfig, kind="PEANUT"):
    """Weight-aware neural tweakers: a small network that reads the weight and writes its update."""

    positive = ("r",)

    r: int = 32  # width of the network
    depth: int = 0  # encoders, and decoders, between A and B
    act_fn: str = "relu"  # the function f, by its name in Transformers' `ACT2FN`
    scaling: float = 1.0  # factor before the update
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    init_weights: bool = True  # B starts at zero, without effect; False: random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.depth < 0 or self.depth != int(self.depth):
            wrong.append(f"`depth`={self.depth} must be a whole number, 0 or more")
        if activation(self.act_fn) is None:
            wrong.append(
                f"`act_fn`={self.act_fn!r} is unknown, or has parameters of its own; choose one without from "
                "`transformers.activations.ACT2FN`"
            )
        return wrong


class Peanut(Method):
    """See the head of this file."""

    name, prefix, defaults = "PEANUT", "peanut_", LORA_TARGETS

    def slots(self, site: Site, cfg: PeanutConfig) -> dict[str, Slot]:
        ends = {"A": (cfg.r, site.matrix[0]), "B": (site.matrix[0], cfg.r)}
        slots = {k: Slot(name=f"peanut_{k}", shape=shape, init=kaiming, module=True) for k, shape in ends.items()}
        slots["B"].init = zeros if cfg.init_weights else kaiming
        for side, name in (("E", "peanut_encoders"), ("D", "peanut_decoders")):
            for i in range(cfg.depth):
                slots[f"{side}{i}"] = Slot(
                    name=name, part=f"{i}.weight", shape=(cfg.r, cfg.r), init=kaiming, module=True
                )
        return slots

    def scaling(self, site: Site, cfg: PeanutConfig) -> float:
        return cfg.scaling

    def hidden(self, w: Tensor, a: Any) -> Tensor:
        """H (r, columns of w)."""
        f: Any = activation(a.cfg.act_fn)
        h = f(a.A @ w.flatten(1).to(a.A.dtype))
        read = []
        for i in range(a.cfg.depth):
            read.append(h)
            h = f(a.tensor(f"E{i}") @ h)
        for i in range(a.cfg.depth):
            h = f(a.tensor(f"D{i}") @ h) + read.pop()
        return h

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return w + a.scale * (a.B @ self.hidden(w, a)).view(w.shape)

    def direct(self, site: Site, cfg: PeanutConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def reads_weight(self, cfg: PeanutConfig) -> bool:
        return True

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        h = a.site.op(x, self.hidden(a.site.weight(), a).view(-1, a.site.inp, *kernel))
        return y + a.scale * a.site.up(h, a.B.view(*a.B.shape, *(1 for _ in kernel)))

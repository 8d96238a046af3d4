"""GLoRA: https://arxiv.org/abs/2306.07967

W' = W + W * A + B, elementwise, and b' = b + b * D + E + W C, with A and B like W (out, in), C (in, 1), D and E (out).
Each is a product Xd Xu of rank r, a vector X (one number a row), a constant X or nothing; C, D and E are nothing where
the layer has no bias. The kernel of a convolution is flattened into `in`.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import listing
from ..method import Method, Slot, kaiming, normal, zeros
from ..sites import Site
from .targets import LORA_TARGETS

FORMS = {
    "config_A_B": ("lora", "vector", "constant", "none"),
    "config_C": ("lora", "vector", "none"),
    "config_D_E": ("vector", "constant", "none"),
}


@dataclass(kw_only=True)
class GloraConfig(AdapterConfig, kind="GLORA"):
    """Generalised LoRA: scales and shifts the weight and the bias, each in a form of choice."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 8  # rank of what is a product ("lora")
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or glora_only
    config_A_B: str = "lora"  # form of A and B: "lora", "vector", "constant" or "none"
    config_C: str = "lora"  # form of C: "lora", "vector" or "none"
    config_D_E: str = "constant"  # form of D and E: "vector", "constant" or "none"
    init_weights: bool = True  # without effect at first; False: random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        forms = {name: getattr(self, name) for name in FORMS}
        for name, form in forms.items():
            if form not in FORMS[name]:
                wrong.append(f"`{name}`={form!r} is unknown; choose one of {listing(FORMS[name])}")
        if self.r <= 0 and "lora" in forms.values():
            wrong.append(f"`r`={self.r} must be at least 1")
        if set(forms.values()) == {"none"}:
            wrong.append(f"{listing(forms)} are all 'none', which leaves nothing to train; give one a form")
        return wrong


class Glora(Method):
    """See the head of this file."""

    name, prefix, defaults = "GLORA", "glora_", LORA_TARGETS

    def slots(self, site: Site, cfg: GloraConfig) -> dict[str, Slot]:
        (out, columns), a_b = site.matrix, cfg.config_A_B
        c, d_e = ("none", "none") if site.bias is None else (cfg.config_C, cfg.config_D_E)
        forms = {"A": a_b, "B": a_b, "C": c, "D": d_e, "E": d_e}
        shapes = {"A": (out, columns), "B": (out, columns), "C": (columns, 1), "D": (out,), "E": (out,)}
        start = zeros if cfg.init_weights else normal(0.1)
        return {
            path + part: Slot(
                name=f"glora_{path}",
                part=part,
                shape=shape,
                init={"Xu": kaiming, "zeros": zeros}.get(part, start),
                module=True,
                trainable=part != "zeros",
            )
            for path, form in forms.items()
            for part, shape in parts(form, shapes[path], cfg.r).items()
        }

    def path(self, a: Any, name: str) -> Tensor:
        """One of A to E: the product of its parts."""
        return reduce(torch.matmul, (a.tensor(key) for key in a.slots if key[0] == name))

    def weight(self, w: Tensor, a: Any) -> Tensor:
        rows = w.flatten(1)
        return (rows + rows * self.path(a, "A") + self.path(a, "B")).view(w.shape)

    def shifted(self, w: Tensor, b: Tensor, a: Any) -> Tensor:
        """The bias b', of a layer whose weight is w."""
        coupled = (w.flatten(1) * self.path(a, "C").flatten()).sum(dim=1)
        return b + b * self.path(a, "D") + self.path(a, "E") + coupled

    def both(self, w: Tensor, b: Tensor | None, a: Any) -> tuple[Tensor, Tensor | None]:
        return self.weight(w, a), None if b is None else self.shifted(w, b, a)

    def direct(self, site: Site, cfg: GloraConfig) -> bool:
        """Where A and B are no more than numbers a row."""
        return super().direct(site, cfg) and site.kind == "linear" and cfg.config_A_B != "lora"

    def reads_weight(self, cfg: GloraConfig) -> bool:
        return True

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        b = a.site.bias
        y = y if b is None else y - b
        if a.cfg.config_A_B != "none":
            y = y + y * self.path(a, "A").flatten() + x.sum(-1, keepdim=True) * self.path(a, "B").flatten()
        return y if b is None else y + self.shifted(a.site.weight(), b, a)


def parts(form: str, shape: tuple[int, ...], r: int) -> dict[str, tuple[int, ...]]:
    """What makes up one of A to E, with shapes: a file holds zeros for nothing."""
    if form == "lora":
        return {"Xd": (shape[0], r), "Xu": (r, shape[1])}
    if form == "vector":
        return {"X": (shape[0], *(1 for _ in shape[1:]))}
    return {"X": (1,)} if form == "constant" else {"zeros": shape}

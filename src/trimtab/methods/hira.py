"""HiRA: https://openreview.net/forum?id=TwJrTz9cRS

W' = W + W * (B A), elementwise, with A (r, in), B (out, r): the update may have the rank of W, far above r. The kernel
of a convolution is flattened into `in`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..config import AdapterConfig
from ..method import Method, Slot, kaiming, normal, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class HiraConfig(AdapterConfig, kind="HIRA"):
    """Hadamard high-rank adaptation: a low-rank product that multiplies the weight elementwise."""

    positive = ("r",)
    shares = ("hira_dropout",)

    r: int = 32  # rank of the factor B A
    hira_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    init_weights: bool | Literal["gaussian"] = True  # B starts at zero, without effect; False: both normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    rank_pattern: dict[str, int] | None = field(default_factory=dict)  # rank by module name or regular expression

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.init_weights not in (True, False, "gaussian"):
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose True, False or 'gaussian'")
        return wrong


class Hira(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "HIRA", "hira_", "hira_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: HiraConfig) -> dict[str, Slot]:
        embedding, kernel = site.kind == "embedding", site.shape[2:]
        starts = {True: (kaiming, zeros), False: (normal(), normal()), "gaussian": (normal(1 / cfg.r), zeros)}
        a, b = (zeros, normal()) if embedding and cfg.init_weights else starts[cfg.init_weights]
        prefix = "hira_embedding_" if embedding else "hira_"
        return {
            "A": Slot(name=f"{prefix}A", shape=(cfg.r, *site.shape[1:]), init=a),
            "B": Slot(name=f"{prefix}B", shape=(site.out, cfg.r, *(1 for _ in kernel)), init=b),
        }

    def factor(self, w: Tensor, a: Any) -> Tensor:
        """B A in the shape of the weight that it multiplies."""
        product = (a.B.flatten(1) @ a.A.flatten(1)).view(a.site.shape)
        return product if w.shape == product.shape else a.site.dense(product)

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return w + w * self.factor(w, a)

    def direct(self, site: Site, cfg: HiraConfig) -> bool:
        """W' costs no more than its update: only dropout asks for the latter apart."""
        return super().direct(site, cfg) and cfg.hira_dropout > 0

    def reads_weight(self, cfg: HiraConfig) -> bool:
        return True

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        w = a.site.weight()
        return y + a.site.op(a.drop(x), w * self.factor(w, a))

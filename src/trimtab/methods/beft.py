"""BEFT: https://arxiv.org/abs/2509.15974

W' = W and b' = b + d: of chosen layers, as a rule the value projections, only the bias is trained. Where a layer has
none, d is its bias.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, normal, zeros
from ..sites import Site
from .targets import LORA_TARGETS, Targets

_VALUES = ("v", "v_proj", "value", "value_proj")
BEFT_TARGETS: Targets = {
    kind: found
    for kind, names in LORA_TARGETS.items()
    if isinstance(names, list) and (found := [n for n in names if n in _VALUES])
}


@dataclass(kw_only=True)
class BeftConfig(AdapterConfig, kind="BEFT"):
    """Bias-efficient fine-tuning."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    init_weights: bool = True  # start at zero, without effect; False: normal


class Beft(Method):
    """See the head of this file."""

    name, prefix, defaults, vectors = "BEFT", "beft_", BEFT_TARGETS, True

    def slots(self, site: Site, cfg: BeftConfig) -> dict[str, Slot]:
        if site.bias is None and not site.pointwise:
            raise ConfigError(f"this {site.kind} layer has no bias, and cannot be given one")
        return {"d": Slot(name="beft_bias", shape=(1, site.out), init=zeros if cfg.init_weights else normal())}

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return w

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return a.d.flatten() if b is None else b + a.d.view(b.shape)

    def direct(self, site: Site, cfg: BeftConfig) -> bool:
        return super().direct(site, cfg) and (site.kind != "norm" or site.bias is None)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return y + a.d.view(-1, *(1 for _ in a.site.shape[2:]))

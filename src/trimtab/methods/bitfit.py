"""BitFit: https://arxiv.org/abs/2106.10199

W' = W and b' = b + d: the biases that the model has are trained, those of normalisations included, and nothing else. d
is held apart from b, so that a model can have several such adapters.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import AdapterConfig
from ..errors import ConfigError
from ..match import bare, ends_with, shortest, walk
from ..method import Slot
from ..sites import Site, site_type
from .beft import Beft


@dataclass(kw_only=True)
class BitFitConfig(AdapterConfig, kind="BITFIT"):
    """Training of biases; without `target_modules`, of all there are outside of `modules_to_save`."""


class BitFit(Beft):
    """See the head of this file."""

    name, prefix, defaults = "BITFIT", "bitfit_", {}

    def find(self, model: nn.Module, cfg: BitFitConfig) -> list[str]:
        """The shortest names that mean every layer with a bias."""
        places = [p for p in walk(model) if type(bare(p.parent)).__name__ != "MultiheadAttention"]
        heads = cfg.modules_to_save or []
        names = [p.name for p in places if has_bias(bare(p.module)) and not ends_with(p.name, heads)]
        if not names:
            raise ConfigError("BitFit trains the biases that a model has, and this one has none")
        return sorted(shortest(names, [p.name for p in places if p.name not in names]))

    def slots(self, site: Site, cfg: Any) -> dict[str, Slot]:
        if site.bias is None:
            raise ConfigError(f"this {site.kind} layer has no bias to train")
        return {"d": Slot(name="bitfit_bias", shape=(site.bias.numel(),))}


def has_bias(layer: nn.Module) -> bool:
    """Whether a layer can carry an adapter and has a bias."""
    site = site_type(layer)
    return site is not None and getattr(layer, site.biased, None) is not None

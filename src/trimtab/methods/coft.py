"""COFT: https://arxiv.org/abs/2306.07280, section 3.4, the variant of OFT that stays near the pretrained weight.

|Q|_F <= eps / sqrt(b) for each of the b blocks, by projected gradient descent: what is outside acts as the nearest Q on
that ball, and in training is put there before the next forward.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..match import adapter_layers
from .oft import OFT, OFTConfig
from .rotation import bounded


class COFT(OFT):
    """See the head of this file."""

    def wanted(self, cfg: OFTConfig) -> bool:
        return cfg.coft

    def triangles(self, a: Any) -> Tensor:
        return a.Q + (projected(a) - a.Q).detach()  # the gradient is that of projected gradient descent

    def before(self, model: nn.Module, name: str, cfg: OFTConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        for layer in adapter_layers(model):
            if layer.training and name in layer.adapters:
                with torch.no_grad():
                    layer.adapters[name].Q.copy_(projected(layer.adapters[name]))
        return super().before(model, name, cfg, kwargs)


def projected(a: Any) -> Tensor:
    """Q's upper triangles (b, n (n - 1) / 2), the nearest within the bound."""
    return bounded(a.Q, a.cfg.eps / math.sqrt(a.Q.shape[0]))

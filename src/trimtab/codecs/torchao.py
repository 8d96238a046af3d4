"""Linear layers whose weight torchao has quantised: `torchao.quantization.quantize_` makes it a class of tensors.

A weight is quantised again as the old one tells: its class, blocks, number format, and what it does to activations.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError, warn
from .base import CodecSite

ACTIVATIONS = ("act_quant_kwargs", "activation_quantization")
TAKEN_OVER = ("block_size", "target_dtype", "mm_config", "kernel_preference", "reduce_range", *ACTIVATIONS)


class TorchaoSite(CodecSite):
    """See the head of this file."""

    layers = ("torchao.utils.TorchAOBaseTensor",)  # the class of the weight
    codec = "torchao"

    def __init__(self, layer: Any, parameter: str = "weight") -> None:
        if not isinstance(layer, nn.Linear):
            raise TargetError(f"a weight of torchao's in a {type(layer).__name__} carries no adapter, only in a Linear")
        kind = type(layer.weight)
        self.codec = f"torchao {kind.__name__}"
        if not hasattr(kind, "from_hp"):
            self.refusal = f"{kind.__name__} offers no way to make another one"
        if any(getattr(layer.weight, name, None) is not None for name in ACTIVATIONS):
            warn(
                f"{kind.__name__} quantises activations too, and may pass no gradient on: adapters below such a layer "
                "would not train. Quantise weights only, where adapters are to be trained"
            )
        super().__init__(layer, parameter)

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    def weight(self) -> Tensor:
        return self.layer.weight.dequantize()

    def encode(self, w: Tensor) -> None:
        self.layer.weight = nn.Parameter(again(self.layer.weight, w.to(self.dtype)), requires_grad=False)


def again(old: Any, w: Tensor) -> Tensor:
    """A weight quantised as another one is."""
    from torchao.quantization import PerRow, PerTensor
    from torchao.quantization.quant_primitives import MappingType

    wanted = signature(type(old).from_hp).parameters
    options = {name: getattr(old, name) for name in TAKEN_OVER if name in wanted and hasattr(old, name)}
    if "granularity" in wanted:
        options["granularity"] = PerTensor() if tuple(old.block_size) == tuple(old.shape) else PerRow()
    if "float8_dtype" in wanted:
        options["float8_dtype"] = old.qdata.dtype
    if "mapping_type" in wanted and (zero := getattr(old, "zero_point", None)) is not None and zero.any():
        options["mapping_type"] = MappingType.ASYMMETRIC
    return type(old).from_hp(w, **options)

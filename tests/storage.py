"""How tests store a base in fewer bits: the layers of the model `wide` in place, by the name of the storage."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from trimtab.codecs import FP8, NF4, Int8, quantize_

LAYERS = ["emb", "lin0", "c1", "lin1"]


def replaced(model: Any, make: Callable[[nn.Module], nn.Module], *names: str) -> None:
    """Replace layers of a model by what `make` makes of them."""
    for name in names:
        layer = getattr(model, name)
        device = layer.weight.device
        setattr(model, name, make(layer).train(layer.training).to(device))


def four_bit(layer: Any) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    dtype = layer.weight.dtype
    made: Any = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, quant_type="nf4")
    made.weight.data, made.bias = layer.weight.data, layer.bias
    made.support_avx512bf16_for_cpu = False  # it would repack the weight, with a loss: nothing to compare with
    return made


def eight_bit(layer: Any) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    made: Any = Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    made.weight.data, made.bias = layer.weight.data, layer.bias
    return made


@torch.no_grad()
def half_quadratic(layer: Any) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=64)
    return HQQLinear(layer, config, True, layer.weight.dtype, layer.weight.device.type)


def torchao(model: nn.Module, config: str) -> None:
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerGroup

    # Int4WeightOnlyConfig needs a GPU.
    options = {"weight_dtype": torch.int4, "granularity": PerGroup(32)} if config.startswith("Intx") else {}
    ao.quantize_(model, getattr(ao, config)(**options), lambda module, path: path in ("lin0", "lin1"))


STORAGE: dict[str, Callable[[nn.Module], object]] = {
    "nf4": lambda model: quantize_(model, NF4(), LAYERS),
    "int8": lambda model: quantize_(model, Int8(), LAYERS),
    "fp8": lambda model: quantize_(model, FP8(), LAYERS),
}
if find_spec("bitsandbytes"):
    STORAGE["bitsandbytes 4-bit"] = lambda model: replaced(model, four_bit, "lin0", "lin1")
    STORAGE["bitsandbytes 8-bit"] = lambda model: replaced(model, eight_bit, "lin0")
if find_spec("hqq"):
    STORAGE["hqq"] = lambda model: replaced(model, half_quadratic, "lin0", "lin1")
if find_spec("torchao"):
    STORAGE["torchao int8"] = lambda model: torchao(model, "Int8WeightOnlyConfig")
    STORAGE["torchao int4"] = lambda model: torchao(model, "IntxWeightOnlyConfig")
    STORAGE["torchao float8"] = lambda model: torchao(model, "Float8WeightOnlyConfig")


def store(model: nn.Module, name: str) -> nn.Module:
    """The model, its layers stored so; as it is for ""."""
    if name:
        STORAGE[name](model)
    return model

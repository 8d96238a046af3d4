"""How tests store a base in fewer bits: the layers of the model `wide` in place, by the name of the storage."""

from collections.abc import Callable

from torch import nn

from trimtab.codecs import FP8, NF4, Int8, quantize_

LAYERS = ["emb", "lin0", "c1", "lin1"]
STORAGE: dict[str, Callable[[nn.Module], object]] = {
    "nf4": lambda model: quantize_(model, NF4(), LAYERS),
    "int8": lambda model: quantize_(model, Int8(), LAYERS),
    "fp8": lambda model: quantize_(model, FP8(), LAYERS),
}


def store(model: nn.Module, name: str) -> nn.Module:
    """The model, its layers stored so; as it is for ""."""
    if name:
        STORAGE[name](model)
    return model

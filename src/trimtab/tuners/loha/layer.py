"""The layers of LoHa, by the kind of base layer."""

from ...compat.faces import LoHaLayer, on

Linear = on("linear", LoHaLayer, "Linear")
Conv1d = on("conv", LoHaLayer, "Conv1d", "Conv1d")
Conv2d = on("conv", LoHaLayer, "Conv2d", "Conv2d")

__all__ = ["Conv1d", "Conv2d", "Linear", "LoHaLayer"]

"""The layers of LoKr, by the kind of base layer."""

from ...compat.faces import LoKrLayer, on
from ...methods.lokr import split as factorization

Linear = on("linear", LoKrLayer, "Linear")
Conv1d = on("conv", LoKrLayer, "Conv1d", "Conv1d")
Conv2d = on("conv", LoKrLayer, "Conv2d", "Conv2d")

__all__ = ["Conv1d", "Conv2d", "Linear", "LoKrLayer", "factorization"]

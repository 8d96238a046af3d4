"""The layers of (IA)^3, by the kind of base layer."""

from ...compat.faces import IA3Layer, on

Linear = on("linear", IA3Layer, "Linear")
Conv2d = on("conv", IA3Layer, "Conv2d", "Conv2d")
Conv3d = on("conv", IA3Layer, "Conv3d", "Conv3d")

__all__ = ["Conv2d", "Conv3d", "IA3Layer", "Linear"]

"""(IA)^3, under the names Hugging Face PEFT gave its parts."""

from ...compat.faces import IA3Model
from ...methods.ia3 import IA3Config
from .layer import Conv2d, Conv3d, IA3Layer, Linear

__all__ = ["Conv2d", "Conv3d", "IA3Config", "IA3Layer", "IA3Model", "Linear"]

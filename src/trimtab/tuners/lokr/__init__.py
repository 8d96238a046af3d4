"""LoKr, under the names Hugging Face PEFT gave its parts."""

from ...compat.faces import LoKrModel
from ...methods.lokr import LoKrConfig
from .layer import Conv1d, Conv2d, Linear, LoKrLayer

__all__ = ["Conv1d", "Conv2d", "Linear", "LoKrConfig", "LoKrLayer", "LoKrModel"]

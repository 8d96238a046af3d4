"""LoHa, under the names Hugging Face PEFT gave its parts."""

from ...compat.faces import LoHaModel
from ...methods.loha import LoHaConfig
from .layer import Conv1d, Conv2d, Linear, LoHaLayer

__all__ = ["Conv1d", "Conv2d", "Linear", "LoHaConfig", "LoHaLayer", "LoHaModel"]

"""VeRA, under the names Hugging Face PEFT gave its parts."""

from ...compat.faces import VeraModel
from ...methods.vera import VeraConfig
from .layer import Linear, VeraLayer

__all__ = ["Linear", "VeraConfig", "VeraLayer", "VeraModel"]

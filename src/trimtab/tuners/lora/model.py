"""The tuner of LoRA."""

from ...compat.faces import LoraModel

__all__ = ["LoraModel"]

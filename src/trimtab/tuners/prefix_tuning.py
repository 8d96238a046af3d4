"""Prefix tuning, under the names Hugging Face PEFT gave its parts."""

from ..methods.prefix_tuning import PrefixEncoder, PrefixTuningConfig

__all__ = ["PrefixEncoder", "PrefixTuningConfig"]

"""LoftQ, after an adapter is in."""

from ..inits.loftq import replace_lora_weights_loftq

__all__ = ["replace_lora_weights_loftq"]

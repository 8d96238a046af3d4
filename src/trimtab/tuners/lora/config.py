"""The configuration of LoRA."""

from ...methods.lora import LoraConfig, LoraRuntimeConfig

__all__ = ["LoraConfig", "LoraRuntimeConfig"]

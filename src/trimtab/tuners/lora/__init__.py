"""LoRA, under the names Hugging Face PEFT gave its parts."""

from ...methods.lora import LoraConfig, LoraRuntimeConfig
from .layer import Conv1d, Conv2d, Conv3d, Embedding, Linear, LoraLayer, MultiheadAttention, ParamWrapper
from .model import LoraModel

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear", "LoraConfig", "LoraLayer", "LoraModel", "LoraRuntimeConfig",
    "MultiheadAttention", "ParamWrapper",
]  # fmt: skip

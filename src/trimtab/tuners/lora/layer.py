"""The layers of LoRA, by the kind of base layer."""

from ...compat.faces import LoraLayer, on

Linear = on("linear", LoraLayer, "Linear")
Embedding = on("embedding", LoraLayer, "Embedding")
Conv1d = on("conv", LoraLayer, "Conv1d", "Conv1d")
Conv2d = on("conv", LoraLayer, "Conv2d", "Conv2d")
Conv3d = on("conv", LoraLayer, "Conv3d", "Conv3d")
MultiheadAttention = on("attention", LoraLayer, "MultiheadAttention")
ParamWrapper = on("parameter", LoraLayer, "ParamWrapper")

__all__ = ["Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear", "LoraLayer", "MultiheadAttention", "ParamWrapper"]

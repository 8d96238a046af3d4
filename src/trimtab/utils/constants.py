"""File names, and the default targets by architecture of each method (`TRANSFORMERS_MODELS_TO_<METHOD>_...`)."""

import torch

from ..config import CONFIG_NAME
from ..match import ALL_LINEAR as INCLUDE_LINEAR_LAYERS_SHORTHAND
from ..method import METHODS
from ..methods.targets import IA3_FEEDFORWARD as TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from ..state import WEIGHTS_NAME as SAFETENSORS_WEIGHTS_NAME

WEIGHTS_NAME = "adapter_model.bin"  # other people's code looks whether there is one; none is read or written here
EMBEDDING_LAYER_NAMES = ["embed_tokens", "lm_head"]
ALLOWED_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UPCAST_DTYPES = (torch.float16, torch.bfloat16)  # those that an adapter leaves for float32
TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING: dict[str, object] = {}  # no cache has a form of its own now
TARGETS = {
    f"TRANSFORMERS_MODELS_TO_{kind.replace('_', '')}_TARGET_MODULES_MAPPING": method.defaults
    for kind, method in METHODS.items()
    if method.defaults
}
vars().update(TARGETS)

__all__ = [
    "ALLOWED_COMPUTE_DTYPES", "CONFIG_NAME", "EMBEDDING_LAYER_NAMES", "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "SAFETENSORS_WEIGHTS_NAME", "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING", "UPCAST_DTYPES", "WEIGHTS_NAME",
]  # fmt: skip
__all__ += list(TARGETS)

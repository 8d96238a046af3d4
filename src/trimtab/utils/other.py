"""Names that other people's code imports from `peft.utils.other`."""

from ..api import prepare_model_for_kbit_training
from ..compat.utilities import (
    cast_mixed_precision_params,
    fsdp_auto_wrap_policy,
    id_tensor_storage,
    infer_device,
    shift_tokens_right,
    transpose,
)
from ..compat.utilities import get_submodules as _get_submodules
from ..wrappers import ModulesToSaveWrapper, TrainableTokensWrapper
from ..wrappers import Wrapper as AuxiliaryTrainingWrapper
from .constants import (
    CONFIG_NAME,
    EMBEDDING_LAYER_NAMES,
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
)

__all__ = [
    "CONFIG_NAME",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "SAFETENSORS_WEIGHTS_NAME",
    "WEIGHTS_NAME",
    "AuxiliaryTrainingWrapper",
    "ModulesToSaveWrapper",
    "TrainableTokensWrapper",
    "_get_submodules",
    "cast_mixed_precision_params",
    "fsdp_auto_wrap_policy",
    "id_tensor_storage",
    "infer_device",
    "prepare_model_for_kbit_training",
    "shift_tokens_right",
    "transpose",
]  # fmt: skip

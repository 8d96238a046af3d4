"""Names that other people's code imports from `peft.utils`; there is nothing else here."""

from ..api import prepare_model_for_kbit_training
from ..base_state import get_base_model_state_dict, set_base_model_state_dict
from ..compat.functional import freeze_adapter as _freeze_adapter
from ..compat.functional import set_additional_trainable_modules
from ..compat.quantization import (
    get_quantization_config,
    get_quantization_kwargs,
    quantization_extra_repr,
    resolve_quantization_backend,
)
from ..compat.utilities import (
    bloom_model_postprocess_past_key_value,
    cast_mixed_precision_params,
    id_tensor_storage,
    infer_device,
    map_cache_to_layer_device_map,
    register_peft_method,
    shift_tokens_right,
    transpose,
)
from ..compat.utilities import get_submodules as _get_submodules
from ..config import PeftType, TaskType
from ..errors import NoMatchingPeftModuleError
from ..errors import TrimtabError as PeftError
from ..errors import TrimtabWarning as PeftWarning
from ..inits.loftq import replace_lora_weights_loftq
from ..wrappers import ModulesToSaveWrapper, TrainableTokensWrapper
from ..wrappers import Wrapper as AuxiliaryTrainingWrapper
from .constants import *  # noqa: F403
from .constants import __all__ as _constants
from .save_and_load import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

__all__ = [
    "AuxiliaryTrainingWrapper",
    "ModulesToSaveWrapper",
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftType",
    "PeftWarning",
    "TaskType",
    "TrainableTokensWrapper",
    "_freeze_adapter",
    "_get_submodules",
    "bloom_model_postprocess_past_key_value",
    "cast_mixed_precision_params",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "get_quantization_config",
    "get_quantization_kwargs",
    "id_tensor_storage",
    "infer_device",
    "load_peft_weights",
    "map_cache_to_layer_device_map",
    "prepare_model_for_kbit_training",
    "quantization_extra_repr",
    "register_peft_method",
    "replace_lora_weights_loftq",
    "resolve_quantization_backend",
    "set_additional_trainable_modules",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "shift_tokens_right",
    "transpose",
]  # fmt: skip
__all__ += _constants

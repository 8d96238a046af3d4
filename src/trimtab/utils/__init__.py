"""Names that other people's code imports from `peft.utils`; there is nothing else here."""

from ..api import prepare_model_for_kbit_training
from ..base_state import get_base_model_state_dict, set_base_model_state_dict
from ..compat.utilities import (
    cast_mixed_precision_params,
    id_tensor_storage,
    infer_device,
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
    "_get_submodules",
    "cast_mixed_precision_params",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "id_tensor_storage",
    "infer_device",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "replace_lora_weights_loftq",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "shift_tokens_right",
    "transpose",
]  # fmt: skip
__all__ += _constants

"""Trimtab: parameter-efficient fine-tuning for PyTorch, with the API and the files of Hugging Face PEFT.

    import trimtab as peft

    model = peft.get_peft_model(base_model, peft.LoraConfig(r=8))

Importing this package loads torch, safetensors and the standard library, nothing else.
"""

from . import compat as compat
from . import fast as fast
from . import inits as inits
from . import tuners as tuners
from . import utils as utils
from ._version import __version__
from .api import (
    get_peft_config,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from .auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from .base_state import get_base_model_state_dict, set_base_model_state_dict
from .config import CONFIGS, AdapterConfig, PeftConfig, PeftType, TaskType
from .convert import Conversion, convert_to_lora, save_as_lora
from .errors import (
    AdapterError,
    AdapterFileError,
    BaseStateError,
    ConfigError,
    ConversionError,
    MergeError,
    NoMatchingPeftModuleError,
    TargetError,
    TrimtabError,
    TrimtabWarning,
)
from .layer import AdapterLayer
from .method import METHODS, Method, Slot
from .methods.arrow import ArrowConfig, create_arrow_model
from .methods.boft import BOFTConfig
from .methods.c3a import C3AConfig
from .methods.fourierft import FourierFTConfig
from .methods.hra import HRAConfig
from .methods.ia3 import IA3Config
from .methods.loha import LoHaConfig
from .methods.lokr import LoKrConfig
from .methods.lora import LoraConfig, LoraRuntimeConfig
from .methods.miss import MissConfig
from .methods.oft import OFTConfig
from .methods.p_tuning import PromptEncoder, PromptEncoderConfig, PromptEncoderReparameterizationType
from .methods.poly import PolyConfig
from .methods.prefix_tuning import PrefixEncoder, PrefixTuningConfig
from .methods.prompt_tuning import PromptEmbedding, PromptTuningConfig, PromptTuningInit
from .methods.psoft import PsoftConfig
from .methods.road import RoadConfig
from .methods.shira import ShiraConfig
from .methods.supertuning import SupertuningConfig
from .methods.vera import VeraConfig
from .methods.waveft import WaveFTConfig
from .methods.xlora import XLoraConfig
from .model import PeftModel
from .prompt import PromptLearningConfig
from .route import fast_mode
from .sites import Site
from .status import explain, get_layer_status, get_model_status
from .tasks import (
    PeftMixedModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    get_peft_model,
)
from .tuner import MergeReport

PeftError = TrimtabError
PeftWarning = TrimtabWarning
PEFT_TYPE_TO_CONFIG_MAPPING = CONFIGS

__all__ = [
    "CONFIGS",
    "METHODS",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "AdapterConfig",
    "AdapterError",
    "AdapterFileError",
    "AdapterLayer",
    "ArrowConfig",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BOFTConfig",
    "BaseStateError",
    "C3AConfig",
    "ConfigError",
    "Conversion",
    "ConversionError",
    "FourierFTConfig",
    "HRAConfig",
    "IA3Config",
    "LoHaConfig",
    "LoKrConfig",
    "LoraConfig",
    "LoraRuntimeConfig",
    "MergeError",
    "MergeReport",
    "Method",
    "MissConfig",
    "NoMatchingPeftModuleError",
    "OFTConfig",
    "PeftConfig",
    "PeftError",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PeftWarning",
    "PolyConfig",
    "PrefixEncoder",
    "PrefixTuningConfig",
    "PromptEmbedding",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "PsoftConfig",
    "RoadConfig",
    "ShiraConfig",
    "Site",
    "Slot",
    "SupertuningConfig",
    "TargetError",
    "TaskType",
    "TrimtabError",
    "TrimtabWarning",
    "VeraConfig",
    "WaveFTConfig",
    "XLoraConfig",
    "__version__",
    "convert_to_lora",
    "create_arrow_model",
    "explain",
    "fast_mode",
    "get_base_model_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "save_as_lora",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]

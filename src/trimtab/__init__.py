"""Trimtab: parameter-efficient fine-tuning for PyTorch, with the API and the files of Hugging Face PEFT.

    import trimtab as peft

    model = peft.get_peft_model(base_model, peft.LoraConfig(r=8))

Importing this package loads torch, safetensors and the standard library, nothing else.
"""

from . import compat as compat
from . import fast as fast
from . import inits as inits
from . import optimizers as optimizers
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
from .audit import Audit, Finding, audit
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
from .codecs import FP8, NF4, Int8, quantize_
from .compat.faces import tuner_faces
from .compat.utilities import bloom_model_postprocess_past_key_value, cast_mixed_precision_params, shift_tokens_right
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
from .folders import TASKS
from .inits.corda import CordaConfig, preprocess_corda
from .inits.eva import EvaConfig, get_eva_state_dict, initialize_lora_eva_weights
from .inits.loftq import LoftQConfig, replace_lora_weights_loftq
from .inits.lora_ga import LoraGAConfig, preprocess_loraga
from .intruders import reduce_intruder_dimension
from .kappa import KappaTuneSelector, find_kappa_target_modules
from .layer import AdapterLayer
from .method import METHODS, Method, Slot
from .methods.adalora import AdaLoraConfig
from .methods.adamss import AdamssConfig
from .methods.adaption_prompt import AdaptionPromptConfig
from .methods.arrow import ArrowConfig, create_arrow_model
from .methods.bdlora import BdLoraConfig
from .methods.beft import BeftConfig
from .methods.bitfit import BitFitConfig
from .methods.boft import BOFTConfig
from .methods.bottleneck import BottleneckConfig
from .methods.c3a import C3AConfig
from .methods.cartridge import (
    CartridgeConfig,
    CartridgeEncoder,
    compose_cartridge_adapters,
    initialize_kv_prefix_from_past_key_values,
    initialize_kv_prefix_from_text,
    prompt_embeddings_from_past_key_values,
)
from .methods.cpt import CPTConfig, CPTEmbedding
from .methods.deft import DeftConfig
from .methods.delora import DeloraConfig
from .methods.fourierft import FourierFTConfig
from .methods.frod import FrodConfig
from .methods.glora import GloraConfig
from .methods.gralora import GraloraConfig
from .methods.hira import HiraConfig
from .methods.hra import HRAConfig
from .methods.ia3 import IA3Config
from .methods.kasa import KasaConfig
from .methods.lily import LilyConfig
from .methods.ln_tuning import LNTuningConfig
from .methods.loha import LoHaConfig
from .methods.lokr import LoKrConfig
from .methods.lora import LoraConfig, LoraRuntimeConfig
from .methods.lst import LSTConfig
from .methods.miss import MissConfig
from .methods.monteclora import MontecloraConfig
from .methods.multitask_prompt_tuning import MultitaskPromptTuningConfig, MultitaskPromptTuningInit
from .methods.oft import OFTConfig
from .methods.osf import OSFConfig
from .methods.p_tuning import PromptEncoder, PromptEncoderConfig, PromptEncoderReparameterizationType
from .methods.peanut import PeanutConfig
from .methods.poly import PolyConfig
from .methods.prefix_tuning import PrefixEncoder, PrefixTuningConfig
from .methods.prompt_tuning import PromptEmbedding, PromptTuningConfig, PromptTuningInit
from .methods.psoft import PsoftConfig
from .methods.pvera import PveraConfig
from .methods.randlora import RandLoraConfig
from .methods.reft import ReftConfig
from .methods.road import RoadConfig
from .methods.shadow import ShadowConfig
from .methods.shira import ShiraConfig
from .methods.supertuning import SupertuningConfig
from .methods.tinylora import TinyLoraConfig
from .methods.trainable_tokens import TrainableTokensConfig
from .methods.unilora import UniLoraConfig
from .methods.vblora import VBLoRAConfig
from .methods.velora import VeloraConfig
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
from .utils.constants import TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING

PeftError = TrimtabError
PeftWarning = TrimtabWarning
PEFT_TYPE_TO_CONFIG_MAPPING = CONFIGS
MODEL_TYPE_TO_PEFT_MODEL_MAPPING = TASKS
_FACES = tuner_faces()  # LoraModel and its like, made from the registry
PEFT_TYPE_TO_TUNER_MAPPING = {face.kind: face for face in _FACES.values()}
PEFT_TYPE_TO_MIXED_MODEL_MAPPING = PEFT_TYPE_TO_TUNER_MAPPING
globals().update(_FACES)

__all__ = [
    "CONFIGS",
    "FP8",
    "METHODS",
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "NF4",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
    "AdaLoraConfig",
    "AdamssConfig",
    "AdapterConfig",
    "AdapterError",
    "AdapterFileError",
    "AdapterLayer",
    "AdaptionPromptConfig",
    "ArrowConfig",
    "Audit",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BOFTConfig",
    "BaseStateError",
    "BdLoraConfig",
    "BeftConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "C3AConfig",
    "CPTConfig",
    "CPTEmbedding",
    "CartridgeConfig",
    "CartridgeEncoder",
    "ConfigError",
    "Conversion",
    "ConversionError",
    "CordaConfig",
    "DeftConfig",
    "DeloraConfig",
    "EvaConfig",
    "Finding",
    "FourierFTConfig",
    "FrodConfig",
    "GloraConfig",
    "GraloraConfig",
    "HRAConfig",
    "HiraConfig",
    "IA3Config",
    "Int8",
    "KappaTuneSelector",
    "KasaConfig",
    "LNTuningConfig",
    "LSTConfig",
    "LilyConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraRuntimeConfig",
    "MergeError",
    "MergeReport",
    "Method",
    "MissConfig",
    "MontecloraConfig",
    "MultitaskPromptTuningConfig",
    "MultitaskPromptTuningInit",
    "NoMatchingPeftModuleError",
    "OFTConfig",
    "OSFConfig",
    "PeanutConfig",
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
    "PveraConfig",
    "RandLoraConfig",
    "ReftConfig",
    "RoadConfig",
    "ShadowConfig",
    "ShiraConfig",
    "Site",
    "Slot",
    "SupertuningConfig",
    "TargetError",
    "TaskType",
    "TinyLoraConfig",
    "TrainableTokensConfig",
    "TrimtabError",
    "TrimtabWarning",
    "UniLoraConfig",
    "VBLoRAConfig",
    "VeloraConfig",
    "VeraConfig",
    "WaveFTConfig",
    "XLoraConfig",
    "__version__",
    "audit",
    "bloom_model_postprocess_past_key_value",
    "cast_mixed_precision_params",
    "compose_cartridge_adapters",
    "convert_to_lora",
    "create_arrow_model",
    "explain",
    "fast_mode",
    "find_kappa_target_modules",
    "get_base_model_state_dict",
    "get_eva_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "initialize_kv_prefix_from_past_key_values",
    "initialize_kv_prefix_from_text",
    "initialize_lora_eva_weights",
    "inject_adapter_in_model",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "preprocess_corda",
    "preprocess_loraga",
    "prompt_embeddings_from_past_key_values",
    "quantize_",
    "reduce_intruder_dimension",
    "replace_lora_weights_loftq",
    "save_as_lora",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "shift_tokens_right",
]
__all__ += list(_FACES)

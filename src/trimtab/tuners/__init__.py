"""Names that other people's code imports from `peft.tuners`, by method; there is nothing else here."""

from ..methods.ia3 import IA3Config
from ..methods.loha import LoHaConfig
from ..methods.lokr import LoKrConfig
from ..methods.lora import LoraConfig, LoraRuntimeConfig
from ..methods.vera import VeraConfig
from . import ia3, loha, lokr, lora, p_tuning, prefix_tuning, prompt_tuning, tuners_utils, vera
from .ia3 import IA3Model
from .loha import LoHaModel
from .lokr import LoKrModel
from .lora import LoraModel
from .p_tuning import PromptEncoder, PromptEncoderConfig, PromptEncoderReparameterizationType
from .prefix_tuning import PrefixEncoder, PrefixTuningConfig
from .prompt_tuning import PromptEmbedding, PromptTuningConfig, PromptTuningInit
from .vera import VeraModel

__all__ = [
    "IA3Config", "IA3Model", "LoHaConfig", "LoHaModel", "LoKrConfig", "LoKrModel", "LoraConfig", "LoraModel",
    "LoraRuntimeConfig", "PrefixEncoder", "PrefixTuningConfig", "PromptEmbedding", "PromptEncoder",
    "PromptEncoderConfig", "PromptEncoderReparameterizationType", "PromptTuningConfig", "PromptTuningInit",
    "VeraConfig", "VeraModel", "ia3", "loha", "lokr", "lora", "p_tuning", "prefix_tuning", "prompt_tuning",
    "tuners_utils", "vera",
]  # fmt: skip

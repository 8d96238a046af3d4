"""The classes by task, a few lines of data each, and `get_peft_model`, which picks one."""

from torch import nn

from .config import PeftConfig, TaskType
from .errors import AdapterError, ConfigError
from .folders import task_class
from .model import PeftModel


class PeftModelForSequenceClassification(PeftModel):
    """A sequence classifier; its head is trained and saved with the adapter."""

    task, heads = TaskType.SEQ_CLS, ("classifier", "score")


class PeftModelForTokenClassification(PeftModel):
    """A token classifier; its head is trained and saved with the adapter."""

    task, heads = TaskType.TOKEN_CLS, ("classifier", "score")


class PeftModelForQuestionAnswering(PeftModel):
    """An extractive question answerer; its head is trained and saved with the adapter."""

    task, heads = TaskType.QUESTION_ANS, ("qa_outputs",)


class PeftModelForCausalLM(PeftModel):
    """A causal language model."""

    task = TaskType.CAUSAL_LM


class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder language model."""

    task = TaskType.SEQ_2_SEQ_LM


class PeftModelForFeatureExtraction(PeftModel):
    """A model whose hidden states are the result."""

    task = TaskType.FEATURE_EXTRACTION


class PeftMixedModel(PeftModel):
    """A model whose adapters may be of different methods, several of them active at once."""

    mixed = True


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Put an adapter into a base model (in place) and return the `PeftModel` of its task.

    Raises `ConfigError`, `TargetError` or `AdapterError` before anything is changed.
    """
    if isinstance(model, PeftModel):
        raise AdapterError("the model has adapters already; use model.add_adapter(name, config) for another")
    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"`peft_config` must be a configuration such as LoraConfig, not a {type(peft_config).__name__}"
        )
    if revision is not None:
        if peft_config.revision not in (None, revision):
            raise ConfigError(f"`revision`={revision!r}, but the configuration says {peft_config.revision!r}")
        peft_config.revision = revision
    chosen = PeftMixedModel if mixed else task_class(peft_config, PeftModel)
    return chosen(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)

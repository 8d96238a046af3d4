"""`AutoPeftModelFor...`: an adapter together with the base model that its configuration names."""

import importlib
from pathlib import Path
from typing import Any, ClassVar

from .config import PeftConfig
from .errors import AdapterFileError, ConfigError
from .files import find
from .model import PeftModel


class AutoPeftModel:
    """Loads base model and adapter in one call; the base's class is the one recorded in the adapter's configuration."""

    auto_class: ClassVar[str] = ""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """The base model named in `adapter_config.json` with the adapter in it; `kwargs` go to the base's loader.

        The embeddings are resized when the adapter's folder brings a larger vocabulary. Raises `ConfigError` when the
        configuration names no base model.
        """
        hub = {k: kwargs[k] for k in ("token", "cache_dir", "local_files_only", "subfolder") if k in kwargs}
        cfg = config or PeftConfig.from_pretrained(pretrained_model_name_or_path, revision=revision, **hub)
        if cfg.base_model_name_or_path is None:
            raise ConfigError(
                f"{pretrained_model_name_or_path}: `base_model_name_or_path` is unset; load the base and use PeftModel"
            )
        base = cls._base_class(cfg).from_pretrained(cfg.base_model_name_or_path, revision=cfg.revision, **kwargs)
        _fit_vocabulary(base, pretrained_model_name_or_path, **hub)
        return PeftModel.from_pretrained(
            base,
            pretrained_model_name_or_path,
            adapter_name,
            is_trainable,
            cfg,
            strict=strict,
            revision=revision,
            **hub,
        )

    @classmethod
    def _base_class(cls, cfg: PeftConfig) -> Any:
        if cls.auto_class:
            return getattr(importlib.import_module("transformers"), cls.auto_class)
        if not cfg.auto_mapping:
            raise ConfigError(
                f"the adapter does not say its base's class; use the AutoPeftModel of its task ({cfg.task_type})"
            )
        return getattr(
            importlib.import_module(cfg.auto_mapping["parent_library"]), cfg.auto_mapping["base_model_class"]
        )


def _fit_vocabulary(base: Any, source: str | Path, **hub: Any) -> None:
    try:
        find(source, "tokenizer_config.json", hub.get("subfolder"), **hub)
    except AdapterFileError:
        return
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(source, **hub)
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))


class AutoPeftModelForCausalLM(AutoPeftModel):
    """For `AutoModelForCausalLM`."""

    auto_class = "AutoModelForCausalLM"


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """For `AutoModelForSeq2SeqLM`."""

    auto_class = "AutoModelForSeq2SeqLM"


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """For `AutoModelForSequenceClassification`."""

    auto_class = "AutoModelForSequenceClassification"


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """For `AutoModelForTokenClassification`."""

    auto_class = "AutoModelForTokenClassification"


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """For `AutoModelForQuestionAnswering`."""

    auto_class = "AutoModelForQuestionAnswering"


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """For `AutoModel`."""

    auto_class = "AutoModel"

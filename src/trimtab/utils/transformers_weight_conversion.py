"""How Transformers finds the tensors of an adapter's file in a model that carries the adapter."""

import importlib
from collections.abc import Sequence
from typing import Any

from ..method import method_of


def build_peft_weight_mapping(
    weight_conversions: Sequence[Any] | None, adapter_name: str, peft_config: Any = None
) -> list[Any]:
    """Renamings from file keys to names in memory, before those of the model (`weight_conversions`) themselves.

    In a file, keys begin with `base_model.model.` and do not tell the adapter; in memory its name follows `lora_A`.
    """
    renaming = importlib.import_module("transformers.core_model_loading").WeightRenaming
    mapping = [renaming(r"^base_model\.model\.", "")]
    if peft_config is not None:
        mapping.append(renaming(rf"({method_of(peft_config).prefix}[^\.]*)", rf"\1.{adapter_name}"))
    return [*mapping, *(weight_conversions or [])]

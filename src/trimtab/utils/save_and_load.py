"""An adapter's state, in a model and in a file."""

from typing import Any

from torch import Tensor, nn

from ..api import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from ..errors import AdapterError

__all__ = ["get_peft_model_state_dict", "load_peft_weights", "set_peft_model_state_dict"]


def _maybe_shard_state_dict_for_tp(model: nn.Module, state_dict: dict[str, Tensor], adapter_name: str) -> Any:
    """Transformers asks for this when a model is split over devices by tensor parallelism, which is refused."""
    raise AdapterError(f"adapter {adapter_name!r} cannot be loaded into a model split by tensor parallelism")

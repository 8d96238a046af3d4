"""What is common to all tuners and their layers."""

from ..compat.faces import BaseTuner, BaseTunerLayer
from ..compat.functional import (
    cast_adapter_dtype,
    check_adapters_to_merge,
    check_target_module_exists,
    delete_adapter,
    set_adapter,
    set_requires_grad,
)
from ..errors import NoMatchingPeftModuleError

__all__ = [
    "BaseTuner", "BaseTunerLayer", "NoMatchingPeftModuleError", "cast_adapter_dtype", "check_adapters_to_merge",
    "check_target_module_exists", "delete_adapter", "set_adapter", "set_requires_grad",
]  # fmt: skip

"""What can be compared: baselines, and every method of the core under its PEFT type's name in lower case."""

from functools import cache

import trimtab
from trimtab.lab.methods.adapter import Adapter, adapter
from trimtab.lab.methods.base import Method
from trimtab.lab.methods.whole import Full, LinearProbe, Untrained
from trimtab.lab.training import Train

__all__ = ["Adapter", "Full", "LinearProbe", "Method", "Train", "Untrained", "all_methods"]


@cache
def all_methods() -> dict[str, type[Method]]:
    """Every method by the name that experiment files use."""
    configs = {kind.lower(): config for kind, config in trimtab.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    baselines: dict[str, type[Method]] = {method.kind: method for method in (Full, LinearProbe, Untrained)}
    return baselines | {kind: adapter(kind, config) for kind, config in sorted(configs.items())}

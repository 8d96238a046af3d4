"""Names that other people's code imports from `peft.tuners`, by method: configurations, and faces of tuner and layers.

`tuners.<peft_type>`, and its `config`, `layer` and `model`, are made from the registry of methods.
"""

from ..compat.faces import provide
from ..config import CONFIGS
from ..inits import corda, eva, loftq, lora_ga
from . import tuners_utils as tuners_utils

_STARTS = {"LORA": {"corda": corda, "eva": eva, "loraga": lora_ga, "loftq": loftq}}

for _kind in CONFIGS:
    vars().update(provide(__name__, _kind, _STARTS.get(_kind, {})))

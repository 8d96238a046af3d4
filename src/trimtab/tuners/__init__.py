"""Names that other people's code imports from `peft.tuners`, by method: configurations, and faces of tuner and layers.

`tuners.<peft_type>`, and its `config`, `layer` and `model`, are made from the registry of methods.
"""

from .. import intruders
from ..compat.faces import provide
from ..config import CONFIGS
from ..inits import corda, eva, loftq, lora_ga
from . import tuners_utils as tuners_utils

_BELOW = {"LORA": {"corda": corda, "eva": eva, "intruders": intruders, "loftq": loftq, "loraga": lora_ga}}

for _kind in CONFIGS:
    vars().update(provide(__name__, _kind, _BELOW.get(_kind, {})))

"""aLoRA: LoRA from its invocation on."""

from tests import models
from tests.row import Row

IDS = models.inputs("llama")["input_ids"]
INVOKED = {"r": 4, "alora_invocation_tokens": IDS[2, 1:3].tolist()}


def alora(name: str, **options: object) -> Row:
    return Row(f"aLoRA{name}", "LORA", INVOKED | {"task_type": "CAUSAL_LM"} | options, "llama")


ROWS = [
    alora(""),
    alora(", by one token", alora_invocation_tokens=[int(IDS[0, 0])], target_modules="all-linear", lora_bias=True),
]

"""BD-LoRA: A or B block-diagonal."""

from tests.row import Row, method

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d attention parameter"
EVEN = {"a": "Linear Conv1D Embedding Conv1d attention parameter", "b": REFUSED + " Linear"}
LLAMA = {"target_modules_bd_a": ["o_proj", "down_proj"], "target_modules_bd_b": ["q_proj", "up_proj"], "nblocks": 2}
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]
SOME = {"target_modules": [*TARGETS, "v_proj"], "use_bdlora": LLAMA | {"match_strict": False}}


def every(side: str) -> list[Row]:
    options = {"r": 4, "use_bdlora": {"nblocks": 2, f"target_modules_bd_{side}": [""]}}
    return method("LORA", options, REFUSED, EVEN[side], label=f"BD-LoRA {side.upper()}")


ROWS = [
    *every("a"),
    *every("b"),
    Row("BD-LoRA", "LORA", {"r": 4, "use_bdlora": LLAMA, "target_modules": TARGETS}, "llama"),
    Row("BD-LoRA, some plain", "LORA", {"r": 4} | SOME, "llama"),
]

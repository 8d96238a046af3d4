"""VeLoRA: A trained from compressed inputs."""

from tests.row import LINEAR, Row, method
from tests.rows.lora import GROUPS

FIXED = {"r": 4, "velora_config": {"num_groups": 2, "init_type": "random", "scale": 0.5}}
REFUSED = "Conv1d Conv2d Conv3d grouped"
MOVES = "its direction is that of the whole batch, and moves with it"
ROWS = [
    *method("LORA", FIXED, REFUSED, "Linear Conv1D Conv1d Conv2d Conv3d grouped", {"grouped": GROUPS}, "VeLoRA"),
    Row(
        "VeLoRA by batch", "LORA", {"r": 4, "velora_config": {"num_groups": 5}} | LINEAR,
        without=dict.fromkeys(["only adapters move", "rows, training"], MOVES),
    ),
    Row("VeLoRA", "LORA", FIXED | {"task_type": "CAUSAL_LM"}, "llama"),
]  # fmt: skip

"""MonteCLoRA: LoRA trained around random samples of A."""

from tests.row import LINEAR, Row, method
from tests.rows.lora import GROUPS

REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention parameter experts"
DRAWS = {"rows, training": "training draws anew"}
OPTIONS = {"r": 4, "monteclora_config": {"num_samples": 3}}
ROWS = [
    *method("LORA", OPTIONS, REFUSED, without={"": DRAWS, "grouped": GROUPS}, label="MonteCLoRA"),
    Row("MonteCLoRA orthogonal", "LORA", OPTIONS | {"init_lora_weights": "orthogonal"} | LINEAR, without=DRAWS),
    Row("MonteCLoRA", "LORA", {"r": 2, "monteclora_config": {}, "lora_bias": True}, "gpt2", without=DRAWS),
]

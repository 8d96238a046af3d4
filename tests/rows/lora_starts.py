"""LoRA from starts that need no data; those that do are in tests/test_starts_with_data.py."""

from tests.row import LINEAR, PAIR, Row, method
from tests.rows.lora import NO_BASE

MICA = {"r": 4, "init_lora_weights": "mica"}
REFUSED = "Conv1d Conv2d Conv3d attention parameter experts"
PLACES = "Linear Conv1D Embedding Conv1d Conv2d Conv3d attention parameter experts"
ROUNDED = {"bf16 base, autocast": "the minor directions of a rounded weight are others"}
NEAR = {"no effect at first": "it begins near the base, not at it"}
ROWS = [
    *method("LORA", MICA, REFUSED, PLACES, {"experts": ROUNDED}, label="MiCA"),
    Row("MiCA, rsLoRA", "LORA", MICA | {"r": 6, "use_rslora": True}, "llama", without=ROUNDED),
    Row(
        "LoftQ", "LORA", {"r": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}} | LINEAR,
        oracle="PEFT needs bitsandbytes for it", without=NEAR | dict.fromkeys(["disable = base", *PAIR], NO_BASE),
    ),
]  # fmt: skip

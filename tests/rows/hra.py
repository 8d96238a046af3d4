"""HRA."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"r": 4}
REFUSED = "Conv1D Embedding Conv1d Conv3d grouped attention"
EFFECT = "it starts with an effect"


def hra(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"HRA {name}", "HRA", OPTIONS | (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("HRA", OPTIONS, REFUSED),
    without(hra("apply_GS", apply_GS=True), EFFECT, "no effect at first"),
    without(hra("odd r", r=3), EFFECT, "no effect at first"),
    without(hra("init False", init_weights=False), EFFECT, "no effect at first"),
    without(hra("bias hra_only", bias="hra_only"), BIASES, "disable = base", *PAIR),
    hra("default targets", "llama"),
]

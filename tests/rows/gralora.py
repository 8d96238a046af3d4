"""GraLoRA."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"r": 4, "alpha": 6}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"


def gralora(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"GraLoRA {name}", "GRALORA", OPTIONS | (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("GRALORA", OPTIONS, REFUSED, "Linear Conv1D Embedding Conv1d grouped attention"),
    *method("GRALORA", OPTIONS | {"gralora_k": 1}, REFUSED, "Conv2d Conv3d"),  # 8 by 9 and 8 by 27: no common factor
    gralora("k = 4, hybrid", gralora_k=4, r=8, hybrid_r=3),
    without(gralora("dropout, hybrid", hybrid_r=2, gralora_dropout=0.3), "dropout draws anew", "rows, training"),
    without(gralora("init False", hybrid_r=2, init_weights=False), "it starts with an effect", "no effect at first"),
    without(gralora("bias gralora_only", bias="gralora_only"), BIASES, "disable = base", *PAIR),
    gralora("default targets", "llama"),
    gralora("hybrid", "gpt2", hybrid_r=2),
]

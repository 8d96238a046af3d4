"""GLoRA."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"r": 3}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"


def glora(name: str, ab: str = "lora", c: str = "lora", de: str = "constant", **options: object) -> Row:
    forms = {"config_A_B": ab, "config_C": c, "config_D_E": de}
    return Row(f"GLoRA {name}", "GLORA", OPTIONS | LINEAR | forms | options)


ROWS = [
    *method("GLORA", OPTIONS, REFUSED),
    glora("vectors", "vector", "vector", "vector"),
    glora("constants", "constant", "none", "constant"),
    glora("bias alone", "none", "lora", "vector", target_modules=["lin0"]),
    glora("weight alone", "lora", "none", "none"),
    without(glora("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(glora("bias all", "vector", bias="all"), BIASES, "disable = base", *PAIR),
    Row("GLoRA default targets", "GLORA", OPTIONS, "llama"),
]

"""DeLoRA."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"r": 3, "delora_lambda": 6}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"


def delora(name: str, **options: object) -> Row:
    return Row(f"DeLoRA {name}", "DELORA", OPTIONS | LINEAR | options)


ROWS = [
    *method("DELORA", OPTIONS, REFUSED),
    delora("patterns", rank_pattern={"lin1": 2}, lambda_pattern={"^lin.": 4, "lin1": 9}),
    without(delora("dropout", module_dropout=0.3), "dropout draws anew", "rows, training"),
    without(delora("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(delora("bias all", bias="all"), BIASES, "disable = base", *PAIR),
    Row("DeLoRA default targets", "DELORA", OPTIONS, "llama"),
]

"""DEFT and PaRa."""

from tests.row import PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"r": 3}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
QR = {"decomposition_method": "qr"}
TAKES = "it takes away from the start"


def deft(name: str, model: str = "zoo", **options: object) -> Row:
    where = {"target_modules": ["lin0", "lin1", "c1"]} if model == "zoo" else {}
    return Row(f"DEFT {name}", "DEFT", OPTIONS | where | options, model)


ROWS = [
    *method("DEFT", OPTIONS, REFUSED),
    *method("DEFT", OPTIONS | QR, REFUSED, "Embedding Conv1d Conv2d grouped attention", label="DEFT qr"),
    deft("qr, alpha", alpha=4, **QR),
    deft("alpha, rank beyond", alpha=4, r=30),
    without(deft("PaRa", para=True), TAKES, "no effect at first"),
    without(deft("PaRa qr", para=True, **QR), TAKES, "no effect at first"),
    without(deft("dropout", deft_dropout=0.3), "dropout draws anew", "rows, training"),
    without(deft("init False", init_weights=False, init_scale=5.0), "it starts with an effect", "no effect at first"),
    without(deft("bias all", bias="all"), BIASES, "disable = base", *PAIR),
    deft("default targets", "llama"),
]

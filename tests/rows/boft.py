"""BOFT."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

REFUSED = "Conv1D Embedding Conv1d Conv3d grouped attention"
ONE = "without a CUDA compiler PEFT takes one factor; see methods/test_boft.py"
TWO = {"boft_block_size": 2, "boft_n_butterfly_factor": 2}


def boft(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"BOFT {name}", "BOFT", (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("BOFT", {}, REFUSED, "Linear Conv1D Embedding Conv1d grouped attention"),
    *method("BOFT", {"boft_block_size": 3}, REFUSED, "Conv2d Conv3d"),
    *(
        without(row, "", oracle=ONE)
        for row in method("BOFT", TWO, sites="Linear Conv1D Embedding Conv1d grouped attention", label="BOFT m = 2")
    ),
    boft("boft_block_num", boft_block_size=0, boft_block_num=2),
    without(boft("dropout", boft_dropout=0.3), "dropout draws anew", "rows, training"),
    without(boft("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(boft("bias boft_only", bias="boft_only"), BIASES, "disable = base", *PAIR),
    boft("default targets", "llama"),
]

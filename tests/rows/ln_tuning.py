"""LN tuning."""

from tests.row import ORACLE, Row, method, without

SITES = "norm Linear Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
ONE = {"two adapters": "each takes the weight's place, so that of two active ones the last acts alone"}
OTHER = dict.fromkeys(ORACLE, "PEFT copies the output projection too, and does not read its own keys of it") | {
    "save and load": "torch rounds in another order where an attention's weights are frozen"
}
ROWS = [
    *method("LN_TUNING", {}, sites=SITES, without={"": ONE, "attention": OTHER}),
    without(Row("LN tuning default targets", "LN_TUNING", {}, "llama"), ONE["two adapters"], "two adapters"),
    without(Row("LN tuning default targets", "LN_TUNING", {}, "gpt2"), ONE["two adapters"], "two adapters"),
]

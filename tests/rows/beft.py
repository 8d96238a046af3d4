"""BEFT."""

from tests.row import MERGES, Row, method, without

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention norm"
SITES = "Linear Conv1D Embedding Conv1d Conv2d Conv3d grouped attention norm"
NONE = dict.fromkeys(MERGES, "there is no bias to merge into")
BIASED = {"target_modules": ["lin0"]}
ROWS = [
    *method("BEFT", {}, REFUSED, sites=SITES, without={"Linear": NONE, "Embedding": NONE}),
    Row("BEFT base with bias", "BEFT", BIASED),
    Row("BEFT default targets", "BEFT", {}, "qwen2"),
    without(Row("BEFT init False", "BEFT", BIASED | {"init_weights": False}), "it has an effect", "no effect at first"),
]

"""Uni-LoRA."""

from tests.row import LINEAR, Row, method

STARTED = {"no effect at first": "it starts with a small effect"}
OPTIONS = {"r": 3, "theta_d_length": 17}
EVEN = {"r": 2, "theta_d_length": 52, "proj_seed": 3} | LINEAR  # of 104 entries
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("UNILORA", OPTIONS, REFUSED, without={"": STARTED}),
    Row("Uni-LoRA, indices in the file", "UNILORA", OPTIONS | {"save_indices": True} | LINEAR, without=STARTED),
    Row("Uni-LoRA, all equally often", "UNILORA", EVEN, without=STARTED),
    Row("Uni-LoRA, default targets", "UNILORA", {"r": 2}, "llama", without=STARTED),
]

"""HRA."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv3d grouped attention"
ROWS = [
    *method("HRA", {"r": 4}, REFUSED),
    Row(
        "HRA, Gram-Schmidt",
        "HRA",
        {"r": 3, "apply_GS": True, "init_weights": False} | LINEAR,
        without={"no effect at first": "it starts with an effect"},
    ),
]

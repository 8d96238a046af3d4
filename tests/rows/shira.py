"""SHiRA."""

from tests.row import LINEAR, Row, method

KEPT = {"keys in memory": "the places are in the model's state too"}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
OPTIONS = {"r": 1, "random_seed": 3}
RANDOM = KEPT | {"no effect at first": "it starts with an effect"}
ROWS = [
    *method("SHIRA", OPTIONS, REFUSED, without={"": KEPT}),
    Row("SHiRA, random start", "SHIRA", OPTIONS | {"init_weights": False} | LINEAR, without=RANDOM),
]

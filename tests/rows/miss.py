"""MiSS."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("MISS", {"r": 5}, REFUSED),
    Row("MiSS, mini", "MISS", {"r": 3, "mini_r": 4, "init_weights": "mini"} | LINEAR),
    Row("MiSS, bat", "MISS", {"r": 4, "init_weights": "bat"} | LINEAR),
]

"""TinyLoRA."""

from tests.row import LINEAR, Row, method

OPTIONS = {"r": 3, "u": 5}
REFUSED = "Conv1d Conv2d Conv3d grouped attention"
SEED = {"save_projection": False, "projection_seed": 7}
ROWS = [
    *method("TINYLORA", OPTIONS, REFUSED),
    Row("TinyLoRA, rank cut, seed only", "TINYLORA", {"r": 30, "u": 5} | SEED | LINEAR),
    Row("TinyLoRA, tied, uniform", "TINYLORA", OPTIONS | {"weight_tying": 0.3, "init_weights": "uniform"}, "llama"),
    Row("TinyLoRA, one for all", "TINYLORA", OPTIONS | {"weight_tying": 1.0}, "llama"),
]
ROWS[-2].without["no effect at first"] = "it starts with a small effect"

"""FourierFT."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"n_frequency": 12, "init_weights": True}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("FOURIERFT", OPTIONS, REFUSED),
    Row(
        "FourierFT, pattern, seed",
        "FOURIERFT",
        OPTIONS | {"n_frequency_pattern": {"lin1": 5}, "random_loc_seed": 3, **LINEAR},
    ),
    without(
        Row("FourierFT, random", "FOURIERFT", {"n_frequency": 12} | LINEAR),
        "it starts with an effect",
        "no effect at first",
    ),
]

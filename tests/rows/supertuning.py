"""Super-tuning."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
PLACES = {"sparsity": 0.8}
ROWS = [
    *method("SUPERTUNING", PLACES, REFUSED),
    Row("Supra", "SUPERTUNING", PLACES | {"r": 2} | LINEAR),
    Row("Super, smallest, places found anew", "SUPERTUNING",
        PLACES | {"select_top": False, "save_precomputed_indices": False} | LINEAR),
]  # fmt: skip

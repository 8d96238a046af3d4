"""PVeRA."""

from tests.row import LINEAR, Row, method

DRAWN = {"keys in memory": "A and B, drawn from a seed, are not kept with every layer"}
SAMPLED = DRAWN | {"rows, training": "features are sampled anew"}
REFUSED = "Embedding Conv1d Conv2d Conv3d"
SEEDED = {"r": 6, "save_projection": False, "projection_prng_key": 7} | LINEAR
ROWS = [
    *method("PVERA", {"r": 6}, REFUSED, "Linear Conv1D Embedding Conv1d Conv2d Conv3d", without={"": SAMPLED}),
    Row("PVeRA, seed only", "PVERA", SEEDED, without=SAMPLED),
    Row("PVeRA, default targets", "PVERA", {"r": 6}, "llama", without=SAMPLED),
]

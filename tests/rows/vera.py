"""VeRA."""

from tests.row import LINEAR, Row, method

DRAWN = {"keys in memory": "A and B, drawn from a seed, are not kept with every layer"}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("VERA", {"r": 6}, REFUSED, without={"": DRAWN}),
    Row(
        "VeRA, seed only", "VERA", {"r": 6, "save_projection": False, "projection_prng_key": 7} | LINEAR, without=DRAWN
    ),
]

"""FRoD."""

from tests.row import LINEAR, Row, method

DRAWN = {
    "keys in memory": "V, computed from the weights, is not kept in the model's state",
    "bf16 base, autocast": "rounded weights have another basis; see methods/test_frod.py",
}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
NOISE = "with fewer rows than columns, PEFT trains along rounding errors; see methods/test_frod.py"
FEW = {"Conv1D": dict.fromkeys(["reads PEFT's file", "PEFT reads ours"], NOISE)}
QUIET = {"progressbar": False}
SEEDED = QUIET | {"sparse_rate": 0.3, "save_projection": False, "projection_prng_key": 7}
TWO = {"target_modules": ["q_proj", "down_proj"]}
ROWS = [
    *method("FROD", QUIET | {"sparse_rate": 0.2}, REFUSED, without={"": DRAWN} | FEW),
    Row("FRoD, seed only", "FROD", SEEDED | LINEAR, without=DRAWN),
    Row("FRoD, seed only, two categories", "FROD", SEEDED | TWO, "llama", without=DRAWN),
    Row("FRoD, default targets", "FROD", QUIET, "llama", without=DRAWN),
    Row("FRoD, Conv1D", "FROD", QUIET | {"sparse_rate": 1.0}, "gpt2", without=DRAWN),
]

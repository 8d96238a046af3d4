"""RandLoRA."""

from tests.row import LINEAR, Row, method

DRAWN = {"keys in memory": "A and B, drawn from a seed, are not kept with every layer"}
ONCE = DRAWN | {"files": "PEFT writes A and B again with every layer; see methods/test_randlora.py"}
REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
OPTIONS = {"r": 3, "randlora_alpha": 6}
SEEDED = OPTIONS | {"save_projection": False, "projection_prng_key": 7} | LINEAR
ROWS = [
    *method("RANDLORA", OPTIONS, REFUSED, without={"": ONCE}),
    Row("RandLoRA, seed only", "RANDLORA", SEEDED, without=DRAWN),
    Row("RandLoRA, sparse, seed only", "RANDLORA", SEEDED | {"sparse": True}, without=DRAWN),
    Row("RandLoRA, very sparse, seed only", "RANDLORA", SEEDED | {"very_sparse": True}, without=DRAWN),
    Row("RandLoRA, default targets", "RANDLORA", OPTIONS | {"r": 40}, "llama", without=ONCE),
]

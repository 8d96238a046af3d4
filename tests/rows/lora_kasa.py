"""KaSA: LoRA with singular values, on a base without its smallest ones."""

from tests.row import LINEAR, Row, method
from tests.rows.lora import NO_BASE

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d attention parameter experts"
LEAVES = dict.fromkeys(["disable = base", "no effect at first"], NO_BASE)
MATRICES = "Linear Conv1D Embedding Conv1d Conv2d Conv3d attention parameter experts"
PATTERNS = {"r": 2, "kasa_config": {}, "use_rslora": True, "rank_pattern": {"lin1": 3}}
ROWS = [
    *method("LORA", {"r": 2, "kasa_config": {}}, REFUSED, MATRICES, {"": LEAVES}, label="KaSA"),
    Row("KaSA, rsLoRA, patterns", "LORA", PATTERNS | LINEAR, without=LEAVES),
    Row("KaSA", "LORA", {"r": 4, "kasa_config": {"beta": 0.1, "gamma": 0.2}}, "llama", without=LEAVES),
]

"""BOFT."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv3d attention"
OPTIONS = {"boft_block_size": 4}
FACTORS = "PEFT has more than one factor only with a kernel that it compiles for CUDA"
ROWS = [
    *method("BOFT", OPTIONS, REFUSED, "Linear Conv1D Conv1d attention"),
    Row("BOFT, blocks", "BOFT", {"boft_block_size": 0, "boft_block_num": 2} | LINEAR),
    Row("BOFT, two factors", "BOFT", {"boft_block_size": 2, "boft_n_butterfly_factor": 2} | LINEAR, oracle=FACTORS),
]

"""PSOFT."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
OPTIONS = {"r": 4}
ROUNDED = {"bf16 base, autocast": "a base in half precision has other singular vectors"}
ROWS = [
    *method("PSOFT", OPTIONS, REFUSED, without={"": ROUNDED}),
    Row("PSOFT, any matrix, one scale", "PSOFT", OPTIONS | {"psoft_orth": False, "psoft_mag_a": False} | LINEAR),
    Row("PSOFT, series, bounded", "PSOFT", OPTIONS | {"use_cayley_neumann": True, "cayley_neumann_eps": 0.4} | LINEAR),
    Row("PSOFT, randomised, even", "PSOFT", OPTIONS | {"psoft_svd": "lowrank", "ab_svd_init": "pissa_init"} | LINEAR),
]

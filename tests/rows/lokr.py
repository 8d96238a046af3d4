"""LoKr."""

from tests.row import LINEAR, Row, method
from tests.rows.loha import KERNEL, OPTIONS, REFUSED

ROWS = [
    *method("LOKR", OPTIONS, REFUSED),
    Row("LoKr effective kernel", "LOKR", OPTIONS | KERNEL),
    Row("LoKr both, factor", "LOKR", {"r": 1, "decompose_both": True, "decompose_factor": 4} | LINEAR),
]

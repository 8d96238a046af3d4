"""RoAd."""

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("ROAD", {"group_size": 4}, REFUSED),
    *(Row(f"RoAd, {v}", "ROAD", {"group_size": 2, "variant": v} | LINEAR) for v in ("road_2", "road_4")),
]

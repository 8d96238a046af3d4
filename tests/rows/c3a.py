"""C3A."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"block_size": 4, "init_weights": True}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
ROWS = [
    *method("C3A", OPTIONS, REFUSED, sites="Linear Conv1D Conv1d grouped attention"),
    *method("C3A", OPTIONS | {"block_size": 6}, REFUSED, sites="Embedding"),  # 12 by 30
    *method("C3A", OPTIONS | {"block_size": 1}, REFUSED, sites="Conv2d Conv3d"),  # 8 by 9 and 8 by 27
    Row("C3A, pattern", "C3A", {"block_size": 4, "block_size_pattern": {"lin0": 2}, "init_weights": True} | LINEAR),
    without(Row("C3A, random", "C3A", {"block_size": 4} | LINEAR), "it starts with an effect", "no effect at first"),
]

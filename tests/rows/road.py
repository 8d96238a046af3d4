"""RoAd."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"group_size": 4}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
ACROSS = "pairs reach across groups"


def road(name: str, **options: object) -> Row:
    return Row(f"RoAd {name}", "ROAD", OPTIONS | LINEAR | options)


ROWS = [
    *method("ROAD", OPTIONS, REFUSED),
    *method("ROAD", OPTIONS | {"variant": "road_2"}, REFUSED, "Linear Embedding Conv2d", label="RoAd road_2"),
    *method("ROAD", OPTIONS | {"variant": "road_4"}, REFUSED, "Linear Embedding Conv2d", label="RoAd road_4"),
    without(road("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    Row("RoAd default targets", "ROAD", {"group_size": 8}, "llama"),
]

"""OSF."""

from tests.row import LINEAR, Row, method, without

LEFT = "PEFT leaves this kind of layer as it is, in silence"
TURNED = "a rounded weight has other singular vectors, which moving at random shows"
OTHERS = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"


def osf(name: str, **options: object) -> Row:
    return Row(f"OSF {name}", "OSF", LINEAR | options)


ROWS = [
    *method("OSF", {}, sites="Linear"),
    *(without(row, "", oracle=LEFT) for row in method("OSF", {}, sites=OTHERS)),
    osf("one left", effective_rank=0.93),
    osf("ranks", effective_rank=3, rank_pattern={"in0": 0.4}),
    without(osf("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(Row("OSF default targets", "OSF", {}, "llama"), TURNED, "bf16 base, autocast"),
]

"""OSF."""

from tests.row import LINEAR, Row, method, without

LEFT = "PEFT leaves this kind of layer as it is, in silence"
OTHERS = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
TURNED = {"bf16 base, autocast": "a rounded weight may have other singular vectors, which moving at random shows"}


def osf(name: str, **options: object) -> Row:
    return Row(f"OSF {name}", "OSF", LINEAR | options, without=TURNED)


ROWS = [
    *method("OSF", {}, sites="Linear", without={"": TURNED}),
    *(without(row, "", oracle=LEFT) for row in method("OSF", {}, sites=OTHERS, without={"": TURNED})),
    osf("one left", effective_rank=0.93),
    osf("ranks", effective_rank=3, rank_pattern={"in0": 0.4}),
    without(osf("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    Row("OSF default targets", "OSF", {}, "llama", without=TURNED),
]

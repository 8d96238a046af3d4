"""AdaMSS."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"r": 6, "num_subspaces": 3, "subspace_rank": 2}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"
TURNED = {"bf16 base, autocast": "a rounded weight may have other subspaces"}


def adamss(name: str, **options: object) -> Row:
    return Row(f"AdaMSS {name}", "ADAMSS", OPTIONS | LINEAR | options, without=TURNED)


ROWS = [
    *method("ADAMSS", OPTIONS, REFUSED, without={"": TURNED}),
    adamss("r beyond", r=100, random_seed=3),
    adamss("dynamic rank", subspace_rank=4, use_dynamic_rank=True, svd_threshold=0.5),
    without(adamss("init None", init_weights=None), "it starts with an effect", "no effect at first"),
    Row("AdaMSS default targets", "ADAMSS", OPTIONS, "llama", without=TURNED),
]

"""PEANuT."""

from tests.row import LINEAR, Row, method, without

OPTIONS = {"r": 4}
REFUSED = "Conv1D Embedding Conv1d Conv2d Conv3d grouped attention"


def peanut(name: str, **options: object) -> Row:
    return Row(f"PEANuT {name}", "PEANUT", OPTIONS | LINEAR | options)


ROWS = [
    *method("PEANUT", OPTIONS, REFUSED),
    peanut("depth 1, scaling", depth=1, scaling=0.5, act_fn="tanh"),
    peanut("depth 3", depth=3, act_fn="gelu"),
    peanut("Transformers' function", depth=1, act_fn="gelu_new"),
    without(peanut("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    Row("PEANuT default targets", "PEANUT", OPTIONS, "llama"),
]

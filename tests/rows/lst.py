"""LST."""

from tests.row import Row, without

NO_GRAPH = "the first block's result has no graph, which is the purpose: see test_lst.py"
RANDOM = "the model's own dropout is random"
UNMOVED = "attention does not depend on a bias of its keys, whose gradient is zero but for rounding"


def lst(name: str, model: str = "llama", **options: object) -> Row:
    return Row(f"LST {name}", "LST", {"reduction": 2} | options, model, without={"compile(fullgraph)": NO_GRAPH})


ROWS = [
    lst("ladder"),
    lst("ladder", "gpt2"),
    without(lst("ladder", "opt"), RANDOM, "rows, training"),
    lst("ladder", "qwen3"),
    lst("ladder", "gemma3"),
    *(
        without(without(lst("ladder", name), RANDOM, "rows, training"), UNMOVED, "only adapters move")
        for name in ("bert", "roberta")
    ),
    lst("narrow", reduction=8, temperature=1.0),
    without(lst("init False", init_weights=False), "it starts with an effect", "no effect at first"),
]

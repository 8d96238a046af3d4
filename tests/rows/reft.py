"""ReFT."""

from tests.row import MERGES, NO_WEIGHT, Row, method, without

SITES = "Linear Conv1D Embedding attention"
SOME, ALL = {"r": 3, "positions": "f1+l2"}, {"r": 3, "positions": "all"}
UNBIASED = dict.fromkeys(MERGES, "there is no bias to merge into")
WHOLE = dict.fromkeys(NO_WEIGHT, "its effect depends on what happens inside the module")


def reft(name: str, model: str = "llama", **options: object) -> Row:
    return Row(f"ReFT {name}", "REFT", SOME | options, model)


ROWS = [
    *method("REFT", SOME, sites=SITES),
    *method(
        "REFT", ALL, sites=SITES, label="ReFT everywhere,",
        without={"Linear": UNBIASED, "Embedding": UNBIASED, "attention": WHOLE},
    ),
    Row("ReFT everywhere, with bias", "REFT", ALL | {"target_modules": ["lin0"]}),
    reft("blocks"),
    reft("blocks", "gpt2", layers=[1]),
    reft("blocks", "vit"),
    without(reft("blocks, everywhere", positions="all"), WHOLE[NO_WEIGHT[0]], *NO_WEIGHT),
    reft("DiReFT", direft=True),
    without(reft("init False", init_weights=False), "it starts with an effect", "no effect at first"),
]  # fmt: skip

"""OFT and its constrained variant COFT."""

from tests.row import LINEAR, PAIR, Row, method, without
from tests.rows.lora import BIASES

OPTIONS = {"oft_block_size": 4}
REFUSED = "Conv1D Conv1d Conv3d attention"
SCRAMBLED = "PEFT's forward of a kernel is not what it merges; see methods/test_oft.py"
KERNELS = dict.fromkeys(["reads PEFT's file", "PEFT reads ours"], SCRAMBLED)


def oft(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"OFT {name}", "OFT", OPTIONS | (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("OFT", OPTIONS, REFUSED, "Linear Conv1D Embedding Conv1d attention"),
    *method("OFT", {"oft_block_size": 3}, REFUSED, "Conv2d Conv3d", without={"Conv2d": KERNELS}),
    *method("OFT", OPTIONS, REFUSED, "grouped", without={"grouped": KERNELS}),
    oft("r, Cayley", r=2, oft_block_size=0, use_cayley_neumann=False),
    oft("block_share, 7 terms", block_share=True, num_cayley_neumann_terms=7, target_modules=["lin0", "emb"]),
    oft("2 terms", num_cayley_neumann_terms=2),
    oft("3 terms", num_cayley_neumann_terms=3),
    oft("COFT", coft=True, eps=0.2, target_modules=["lin0", "emb"]),
    oft("COFT, block_share, Cayley", coft=True, eps=0.3, block_share=True, use_cayley_neumann=False),
    without(oft("module_dropout", module_dropout=0.3), "dropout draws anew", "rows, training"),
    without(oft("init False", init_weights=False), "it starts with an effect", "no effect at first"),
    without(oft("bias oft_only", bias="oft_only"), BIASES, "disable = base", *PAIR),
    oft("default targets", "llama"),
]

"""OFT."""

from dataclasses import replace

from tests.row import LINEAR, Row, method

REFUSED = "Conv1D Conv1d Conv3d attention"
OPTIONS = {"oft_block_size": 4}
OWN = "PEFT turns the patches of a convolution in another way than it merges"
ROWS = [
    *(
        replace(r, oracle=OWN) if "grouped" in r.name else r
        for r in method("OFT", OPTIONS, REFUSED, "Linear Conv1D Conv1d grouped attention")
    ),
    Row("OFT on kernels", "OFT", {"oft_block_size": 3, "target_modules": ["conv2", "conv3"]}, oracle=OWN),
    Row("OFT, blocks", "OFT", {"r": 2, "oft_block_size": 0} | LINEAR),
    Row("OFT, exact, shared", "OFT", OPTIONS | {"use_cayley_neumann": False, "block_share": True} | LINEAR),
    Row("OFT, three terms", "OFT", OPTIONS | {"num_cayley_neumann_terms": 3} | LINEAR),
    Row("COFT", "OFT", OPTIONS | {"coft": True, "eps": 0.3} | LINEAR),
]

"""Lily: it averages over the batch."""

from tests.row import Row, method

OPTIONS = {"r": 3, "num_B": 3, "scaling": 2.0}
REFUSED = "Embedding Conv1D Conv1d Conv2d Conv3d"
BATCH = dict.fromkeys(["rows", "rows, training"], "the router averages over the rows that an adapter has")
TWO = {"target_modules": ["q_proj", "v_proj", "down_proj"], "stride_A": 2}
ROWS = [
    *method("LILY", OPTIONS, REFUSED, "Linear Conv1D Embedding Conv1d Conv2d Conv3d", {"": BATCH}),
    Row("Lily, shared A", "LILY", OPTIONS | TWO, "llama", without=BATCH),
    Row("Lily, random start", "LILY", OPTIONS | {"init_weights": False}, "llama", without=BATCH),
]
ROWS[-1].without = BATCH | {"no effect at first": "it starts with an effect"}

"""Trainable tokens."""

from tests.row import Row, method, without

ONE = {"two adapters": "each takes the rows' place, so that of two active ones the last acts alone"}
UNBIASED = dict.fromkeys(("reads PEFT's file", "PEFT reads ours"), "PEFT's output leaves out the bias of the layer")
REFUSED = "Conv1D"
IN_BATCH = {"token_indices": [24, 8, 13]}


def tokens(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(
        f"Trainable tokens{name}", "TRAINABLE_TOKENS", {"token_indices": [7, 3, 21]} | options, model, without=ONE
    )


ROWS = [
    *method(
        "TRAINABLE_TOKENS", {"token_indices": [7, 3, 5]}, REFUSED, sites="Linear Conv1D",
        without={"": ONE, "Linear": UNBIASED},
    ),
    *method("TRAINABLE_TOKENS", IN_BATCH, sites="Embedding", without={"": ONE}),
    tokens("", "llama"),
    tokens(", layer without bias", target_modules=["lin1"], token_indices=[7, 3, 5]),
    tokens(", tied", "llama-tied"),
    tokens(", tied, named", "llama-tied", target_modules=["embed_tokens"]),
    tokens(", tied, head alone", "llama-tied", target_modules=["lm_head"]),
    without(tokens(", init False", "llama", init_weights=False), "it starts with an effect", "no effect at first"),
]  # fmt: skip

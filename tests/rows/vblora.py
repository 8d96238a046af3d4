"""VB-LoRA."""

from tests.row import LINEAR, Row, method

REFUSED = "Embedding Conv1d Conv2d Conv3d grouped attention"
STARTED = {"no effect at first": "it starts with a small effect"}
OPTIONS = {"r": 3, "num_vectors": 9, "vector_length": 2, "topk": 2}
LOGITS = "weights in a file are logits to some digits only; see methods/test_vblora.py"
CHOSEN = STARTED | dict.fromkeys(["save and load", "set_peft_model_state_dict"], LOGITS)
ROWS = [
    *method("VBLORA", OPTIONS, REFUSED, "Linear Conv1D Embedding Conv1d grouped attention", {"": STARTED}),
    *method("VBLORA", OPTIONS | {"vector_length": 1}, REFUSED, "Conv2d Conv3d", {"": STARTED}),
    Row("VB-LoRA, chosen", "VBLORA", OPTIONS | {"topk": 3, "save_only_topk_weights": True} | LINEAR, without=CHOSEN),
    Row("VB-LoRA, default targets", "VBLORA", OPTIONS, "llama", without=STARTED),
]

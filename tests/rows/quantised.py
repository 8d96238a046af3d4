"""A representative set of methods on bases that are stored in fewer bits."""

from typing import Any

from tests.row import QUANTISED, Row
from tests.storage import STORAGE

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LORA", {"r": 4}),
    "DoRA": ("LORA", {"r": 4, "use_dora": True}),
    "IA3": ("IA3", {"feedforward_modules": ["lin0"]}),
    "LoHa": ("LOHA", {"r": 4}),
    "LoKr": ("LOKR", {"r": 4}),
    "VeRA": ("VERA", {"r": 4}),
    "OFT": ("OFT", {"oft_block_size": 8}),
    "PSOFT": ("PSOFT", {"r": 4}),
}
LINEAR = "lin0 c1 lin1"
STATE = {"deepcopy, state_dict": "its state is read by its own loader only"}
LLM_INT8 = dict.fromkeys(
    ("forward = op(x, weight(W))", "no effect at first", QUANTISED), "the layer's own product quantises activations too"
)


def on(codec: str, methods: str, layers: str, oracle: str | None = None, without: dict[str, str] | None = None):
    """Rows of these methods on a base stored so, where the package that stores it is installed."""
    if codec not in STORAGE:
        return []
    rows = []
    for name in methods.split():
        kind, options = METHODS[name]
        options = options | {"target_modules": layers.split()}
        rows.append(Row(f"{name} on {codec}", kind, options, "wide", oracle, dict(without or {}), codec=codec))
    return rows


NOT_THERE = "PEFT knows no such storage"
OWN = [
    row
    for codec in ("nf4", "int8", "fp8")
    for row in [
        *on(codec, "LoRA DoRA", f"emb {LINEAR}", NOT_THERE),
        *on(codec, "IA3 LoHa LoKr OFT PSOFT", LINEAR, NOT_THERE),
        *on(codec, "VeRA", "lin0 lin1", NOT_THERE),
    ]
]
ROWS = [
    *OWN,
    *(r for kind in ("int8", "int4", "float8") for r in on(f"torchao {kind}", "LoRA DoRA IA3", "lin0 lin1")),
    *on("hqq", "LoRA DoRA", "lin0 lin1"),
    *on("hqq", "LoHa", "lin0 lin1", NOT_THERE),
    *on("torchao int8", "LoHa", "lin0 lin1", NOT_THERE),
    *on("bitsandbytes 4-bit", "LoRA DoRA IA3", "lin0 lin1", without=STATE),
    *on("bitsandbytes 4-bit", "LoHa", "lin0 lin1", NOT_THERE, STATE),
    *on("bitsandbytes 8-bit", "LoRA DoRA IA3", "lin0", without=STATE | LLM_INT8),
    *on("bitsandbytes 8-bit", "LoHa", "lin0", NOT_THERE, STATE | LLM_INT8),
]

"""A representative set of methods on bases that are stored in fewer bits."""

from typing import Any

from tests.row import Row

OWN = ("nf4", "int8", "fp8")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LORA", {"r": 4, "target_modules": ["emb", "lin0", "c1", "lin1"]}),
    "DoRA": ("LORA", {"r": 4, "use_dora": True, "target_modules": ["emb", "lin0", "c1", "lin1"]}),
    "IA3": ("IA3", {"target_modules": ["lin0", "c1", "lin1"], "feedforward_modules": ["lin1"]}),
    "LoHa": ("LOHA", {"r": 4, "target_modules": ["lin0", "c1", "lin1"]}),
    "LoKr": ("LOKR", {"r": 4, "target_modules": ["lin0", "c1", "lin1"]}),
    "VeRA": ("VERA", {"r": 4, "target_modules": ["lin0", "lin1"]}),
}


def on(codec: str, *methods: str, without: dict[str, str] | None = None) -> list[Row]:
    """Rows of these methods on a base stored so."""
    return [
        Row(f"{m} on {codec}", *METHODS[m], "wide", "PEFT knows no such storage", dict(without or {}), codec=codec)
        for m in methods
    ]


ROWS = [row for codec in OWN for row in on(codec, *METHODS)]

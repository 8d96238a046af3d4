"""AdaLoRA."""

from tests.row import LINEAR, ORACLE, PAIR, Row, method, without

OPTIONS = {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 300}
REFUSED = "Embedding Conv1d Conv3d attention parameter experts"
BROKEN = {"grouped": dict.fromkeys(ORACLE, "PEFT's update has not the shape of the weight")}
BIASES = "biases of the base belong to no adapter alone"


def adalora(name: str, model: str = "zoo", **options: object) -> Row:
    return Row(f"AdaLoRA {name}", "ADALORA", OPTIONS | (LINEAR if model == "zoo" else {}) | options, model)


ROWS = [
    *method("ADALORA", OPTIONS, REFUSED, without=BROKEN),
    without(adalora("init False", init_lora_weights=False), "it starts with an effect", "no effect at first"),
    without(adalora("dropout", lora_dropout=0.3), "dropout draws anew", "rows, training"),
    without(adalora("bias", bias="lora_only"), BIASES, "disable = base", *PAIR),
    adalora("default targets", "llama", lora_alpha=0),
    adalora("default targets", "gpt2"),
]

"""ShadowPEFT."""

from tests.row import Row, without

LAST = "PEFT's file holds the last block's T and G too, whose state nobody reads"


def shadow(name: str, model: str = "llama", **options: object) -> Row:
    row = Row(f"Shadow {name}", "SHADOW", {"r": 2} | options, model)
    return without(row, LAST, "only adapters move")


ROWS = [
    shadow("mirror"),
    shadow("mirror", "gpt2"),
    shadow("mirror", "opt"),
    shadow("mirror", "qwen3"),
    shadow("smaller", shadow_hidden_size=8, shadow_num_attention_heads=1, shadow_intermediate_size=12),
    shadow("deeper", shadow_num_hidden_layers=2, update_hidden_size=5, share_embeddings=False),
    shadow("classifier", "llama-cls", task_type="SEQ_CLS"),
    without(shadow("init False", init_weights=False, shadow_alpha=0.5), "it starts with an effect", "no effect at first"),
]

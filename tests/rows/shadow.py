"""ShadowPEFT."""

from tests.row import Row, without

LEFT_OUT = {
    "only adapters move": "the last block's T and G, which files hold, make a state that nobody reads",
    "keys in memory": "the first block holds the shadow too, under its own names",
    "compile(fullgraph)": "called twice with one cache, whose keys have the adapter's graph: see test_shadow.py",
}


def shadow(name: str, model: str = "llama", **options: object) -> Row:
    return Row(f"Shadow {name}", "SHADOW", {"r": 2, "shadow_dropout": 0.0} | options, model, without=dict(LEFT_OUT))


ONE_HEAD = "both train the classifier in full"
ROWS = [
    shadow("mirror"),
    shadow("mirror", "gpt2"),
    without(shadow("mirror", "opt"), "the model's own dropout is random", "rows, training"),
    shadow("mirror", "qwen3"),
    shadow("smaller", shadow_hidden_size=8, shadow_num_attention_heads=1, shadow_intermediate_size=12),
    shadow("deeper", shadow_num_hidden_layers=2, update_hidden_size=5, share_embeddings=False),
    without(shadow("classifier", "llama-cls", task_type="SEQ_CLS"), ONE_HEAD, "two adapters"),
    without(shadow("init False", init_weights=False), "it starts with an effect", "no effect at first"),
]

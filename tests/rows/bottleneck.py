"""Bottleneck adapters: behind and beside layers, and modules as a whole."""

from tests.row import Row, method, without

SMALL = {"reduction_factor": 3}


def bottleneck(name: str, model: str, **options: object) -> Row:
    return Row(f"Bottleneck {name}", "BOTTLENECK", SMALL | options, model)


ROUNDED = {"save and load": "torch rounds a product with frozen weights in another order here"}
ROWS = [
    *method("BOTTLENECK", SMALL, without={"attention": ROUNDED}),
    *method("BOTTLENECK", SMALL | {"placement": "parallel", "non_linearity": "gelu", "scaling": 4.0}, label="Parallel"),
    bottleneck("Pfeiffer", "llama"),
    bottleneck("Houlsby", "gpt2", placement="houlsby", non_linearity="silu"),
    bottleneck("parallel", "llama", placement="parallel"),
    bottleneck("parallel", "gpt2", placement="parallel"),
    bottleneck("on blocks", "llama", target_modules=["layers.0", "layers.1"]),
    bottleneck("on blocks", "gpt2", target_modules=["h.0", "h.0.mlp", "h.0.mlp.c_proj", "h.1.attn"]),
    without(bottleneck("init False", "llama", init_weights=False), "it starts with an effect", "no effect at first"),
]

"""LoRA, its options and its starts."""

from dataclasses import replace
from typing import Any

from tests.row import ALL, INSIDE, LINEAR, MERGES, PAIR, Row, method, without

ONE_COPY = "two adapters cannot both train a module in full"
BIASES = "biases of the base belong to no adapter alone"
NO_BASE = "the start changes the base weight"


def starts(*names: str) -> list[Row]:
    """LoRA from starts that rewrite the base: two adapters would each rewrite it, and it does not come back."""
    leaves = dict.fromkeys(["disable = base", "two adapters", "rows", "rows, training"], NO_BASE)
    options = {"r": 4, "target_modules": ["lin0", "lin1"]}
    rows = [Row(f"LoRA {n}", "LORA", options | {"init_lora_weights": n}, without=leaves) for n in names]
    rows[-1].options["target_modules"] = ["lin0", "c1", "conv2", "emb"]
    return [*rows[:-1], replace(rows[-1], name=f"{rows[-1].name}, all layers", oracle="PEFT refuses convolutions")]


def lora(name: str, model: str = "zoo", **options: Any) -> Row:
    return Row(f"LoRA {name}", "LORA", {"r": 4} | (LINEAR if model == "zoo" else {}) | options, model)


def option_rows() -> list[Row]:
    """Options of the methods, one or two a row."""
    return [
        lora("rsLoRA, patterns", use_rslora=True, rank_pattern={"lin1": 2}, alpha_pattern={"lin0": 3}),
        lora("patterns as regex", rank_pattern={"^lin.": 2, "lin1": 6}, alpha_pattern={".*1$": 2}),
        lora("DoRA", use_dora=True, **ALL),
        lora("DoRA, rsLoRA", use_dora=True, use_rslora=True),
        lora("bias after B", lora_bias=True, target_modules=["lin0", "conv1", "conv2", "c1"]),
        without(lora("bias, base without", lora_bias=True), "there is no bias to merge into", *MERGES),
        without(lora("bias all", bias="all"), BIASES, "disable = base", *PAIR),
        without(lora("bias lora_only", bias="lora_only"), BIASES, "disable = base", *PAIR),
        lora("all layers", **ALL),
        lora("gaussian", init_lora_weights="gaussian", **ALL),
        lora("orthogonal", init_lora_weights="orthogonal"),
        without(lora("init False", init_lora_weights=False, **ALL), "it starts with an effect", "no effect at first"),
        *starts("pissa", "olora", "pissa_niter_4"),
        without(lora("dropout", lora_dropout=0.3), "dropout draws anew", "rows, training"),
        without(lora("modules_to_save", modules_to_save=["head"]), ONE_COPY, "two adapters"),
        lora("exclude_modules", target_modules=["lin0", "lin1", "conv1"], exclude_modules=["lin1"]),
        lora("regex", target_modules=r"(lin\d|conv[12])"),
        without(lora("all-linear", target_modules="all-linear"), "", oracle="PEFT adapts mha.out_proj, to no effect"),
        lora("token rows", trainable_token_indices={"emb": [7, 3, 21]}),
        without(
            lora("parameters, modules", target_modules=["lin1"], target_parameters=["lin0.weight", "experts.up"]),
            INSIDE, "rows", "rows, training",
        ),
        without(
            lora("parameters as regex", target_modules=[], target_parameters=r"(lin0\.weight|experts\..*)"), INSIDE,
            "rows", "rows, training", oracle="PEFT knows names only",
        ),
        lora("default targets", "llama"),
        lora("all-linear", "llama", target_modules="all-linear"),
        lora("layers_to_transform", "llama", layers_to_transform=[1], target_modules=["q_proj", "down_proj"]),
        lora("layers_pattern", "llama", layers_to_transform=0, layers_pattern="layers", target_modules=["v_proj"]),
        lora("layer_replication", "llama", layer_replication=[[0, 2], [1, 2]]),
        lora("token rows", "llama", trainable_token_indices=[7, 3, 21]),
        lora("tied token rows", "llama-tied", trainable_token_indices=[7, 3, 21]),
        without(lora("modules_to_save", "llama", modules_to_save=["lm_head", "norm"]), ONE_COPY, "two adapters"),
        lora("embeddings", "llama", target_modules=["embed_tokens", "lm_head", "q_proj"]),
        lora("Conv1D", "gpt2"),
    ]  # fmt: skip


GROUPS = dict.fromkeys(MERGES, "B A mixes the groups that the weight keeps apart")
ROWS = [*method("LORA", {"r": 4}, without={"grouped": GROUPS}), *option_rows()]

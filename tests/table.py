"""The table of proof: a row a method on a kind of layer (or one of its options), a column a behaviour.

`test_table.py` makes a test of every cell. `python -m tests.table` prints it: ok, FAIL, or – with its reason below;
`python -m tests.table dora "files"` only rows and columns whose names hold one of these words.
"""

import sys
import tempfile
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import peft
import torch
from tests import models
from torch import nn

import trimtab

# Where to find a kind of layer in the model `zoo`.
SITES: dict[str, dict[str, Any]] = {
    "Linear": {"target_modules": ["lin0", "lin1"]},
    "Conv1D": {"target_modules": ["c1"]},
    "Embedding": {"target_modules": ["emb"]},
    "Conv1d": {"target_modules": ["conv1"]},
    "Conv2d": {"target_modules": ["conv2"]},
    "Conv3d": {"target_modules": ["conv3"]},
    "grouped": {"target_modules": ["gconv"]},
    "attention": {"target_modules": ["mha"]},
    "parameter": {"target_parameters": ["lin0.weight"]},
    "experts": {"target_parameters": ["experts.up"]},
}
OPTIONS: dict[str, dict[str, Any]] = {"LORA": {"r": 4}, "IA3": {"feedforward_modules": []}, "VERA": {"r": 6}}
for lycoris in ("LOHA", "LOKR"):
    OPTIONS[lycoris] = {"r": 2, "alpha": 4}

# Kinds of layer that PEFT 0.21.2 refuses for a method; `test_peft_refuses` makes sure.
REFUSED: dict[str, str] = {
    "IA3": "Embedding Conv1d attention",
    "LOHA": "Embedding Conv1D Conv3d attention",
    "LOKR": "Embedding Conv1D Conv3d attention",
    "VERA": "Embedding Conv1d Conv2d Conv3d grouped attention",
}
MERGES = ("merge = forward, unmerge exact", "merge_and_unload, unload")
ORACLE = ("keys in memory", "files", "reads PEFT's file", "PEFT reads ours")
INSIDE = "rows cannot be told apart inside a layer that computes in its own way"


@dataclass
class Row:
    """A configuration on a model. `without`: columns that do not apply, and why."""

    name: str
    kind: str
    options: dict[str, Any]
    model: str = "zoo"
    oracle: str | None = None  # why PEFT is not asked
    without: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name if self.model == "zoo" else f"{self.name} ({self.model})"

    def leaves_out(self, column: str) -> str | None:
        """Why a column does not apply here, or None."""
        if self.oracle and column in ORACLE:
            return self.oracle
        return self.without.get(column)

    def config(self, library: Any = trimtab) -> Any:
        classes = trimtab.CONFIGS if library is trimtab else peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
        options = {k: v.copy() if isinstance(v, (dict, list)) else v for k, v in self.options.items()}
        return classes[self.kind](**options)

    def base(self, **options: Any) -> nn.Module:
        return models.base(self.model, **options)

    def plain(self) -> nn.Module:
        """The base as the adapter has it, its layers replicated if that is what it asks for."""
        return self.fresh().unload() if "layer_replication" in self.options else self.base()

    def fresh(self, library: Any = trimtab, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """A new model with the adapter as it starts."""
        return library.get_peft_model(self.base(dtype=dtype), self.config(library), **options).eval()

    def trained(self, library: Any = trimtab, seed: int = 5, **options: Any) -> Any:
        """A model whose adapter has moved."""
        return models.shake(self.fresh(library, **options), seed)

    def batch(self, rows: int = 4) -> dict[str, torch.Tensor]:
        batch = models.inputs(self.model, rows)
        return {k: v for k, v in batch.items() if k != "labels"}

    def output(self, model: nn.Module, rows: int = 4, **options: Any) -> torch.Tensor:
        return models.output(model, self.batch(rows), **options)


def declares(kind: str, option: str) -> bool:
    """Whether a method's file format knows an option."""
    return option in {f.name for f in fields(trimtab.CONFIGS[kind])}


def method_rows() -> list[Row]:
    """Every method in the registry on every kind of layer it can target."""
    rows = []
    for kind in trimtab.METHODS:
        for site, where in SITES.items():
            if not declares(kind, next(iter(where))):
                continue
            oracle = "PEFT refuses it" if site in REFUSED.get(kind, "").split() else None
            without = (
                {"rows": INSIDE, "rows, training": INSIDE} if site in ("attention", "parameter", "experts") else {}
            )
            if kind == "LORA" and site == "grouped":
                without = dict.fromkeys(MERGES, "B A mixes the groups that the weight keeps apart")
            if kind == "VERA":
                without["keys in memory"] = "A and B, drawn from a seed, are not kept with every layer"
            rows.append(Row(f"{kind} {site}", kind, OPTIONS.get(kind, {}) | where, oracle=oracle, without=without))
    return rows


LINEAR = SITES["Linear"]
ALL = {"target_modules": ["lin0", "lin1", "c1", "emb", "conv1", "conv2", "conv3"]}
ONE_COPY = "two adapters cannot both train a module in full"
BIASES = "biases of the base belong to no adapter alone"
NO_BASE = "the start changes the base weight"
LOHA_KERNEL = {"target_modules": ["conv2", "gconv"], "use_effective_conv2d": True}


def starts(*names: str) -> list[Row]:
    """LoRA from starts that rewrite the base: two adapters would each rewrite it, and it does not come back."""
    leaves = dict.fromkeys(["disable = base", "two adapters", "rows", "rows, training"], NO_BASE)
    options = {"r": 4, "target_modules": ["lin0", "lin1"]}
    rows = [Row(f"LoRA {n}", "LORA", options | {"init_lora_weights": n}, without=leaves) for n in names]
    rows[-1].options["target_modules"] = ["lin0", "c1", "conv2", "emb"]
    return [*rows[:-1], replace(rows[-1], name=f"{rows[-1].name}, all layers", oracle="PEFT refuses convolutions")]


def lora(name: str, model: str = "zoo", **options: Any) -> Row:
    return Row(f"LoRA {name}", "LORA", {"r": 4} | (LINEAR if model == "zoo" else {}) | options, model)


def without(row: Row, why: str, *columns: str, oracle: str | None = None) -> Row:
    return replace(row, without=row.without | dict.fromkeys(columns, why), oracle=oracle)


def option_rows() -> list[Row]:
    """Options of the methods, one or two a row."""
    pair = ("two adapters", "rows", "rows, training")
    return [
        lora("rsLoRA, patterns", use_rslora=True, rank_pattern={"lin1": 2}, alpha_pattern={"lin0": 3}),
        lora("patterns as regex", rank_pattern={"^lin.": 2, "lin1": 6}, alpha_pattern={".*1$": 2}),
        lora("DoRA", use_dora=True, **ALL),
        lora("DoRA, rsLoRA", use_dora=True, use_rslora=True),
        lora("bias after B", lora_bias=True, target_modules=["lin0", "conv1", "conv2", "c1"]),
        without(lora("bias, base without", lora_bias=True), "there is no bias to merge into", *MERGES),
        without(lora("bias all", bias="all"), BIASES, "disable = base", *pair),
        without(lora("bias lora_only", bias="lora_only"), BIASES, "disable = base", *pair),
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
        Row("IA3 feed-forward", "IA3", {"target_modules": ["lin0", "lin1", "c1", "conv2"],
            "feedforward_modules": ["lin1", "conv2"]}),
        Row("LoHa effective kernel", "LOHA", OPTIONS["LOHA"] | LOHA_KERNEL),
        Row("LoKr effective kernel", "LOKR", OPTIONS["LOKR"] | LOHA_KERNEL),
        Row("LoKr both, factor", "LOKR", {"r": 1, "decompose_both": True, "decompose_factor": 4} | LINEAR),
        Row("VeRA, seed only", "VERA", {"r": 6, "save_projection": False, "projection_prng_key": 7} | LINEAR),
    ]  # fmt: skip


ROWS = [*method_rows(), *option_rows()]


def main(*words: str) -> int:
    """Print the table, or the rows and columns that `words` pick. Returns the number of failures."""
    from tests.behaviours import COLUMNS

    torch.set_num_threads(1)  # the tensors are tiny
    rows = [r for r in ROWS if any(w.lower() in r.label.lower() for w in words)] or ROWS
    columns = [c for c in COLUMNS if c in words] or list(COLUMNS)
    notes: dict[str, None] = {}
    failures = 0
    print(f"{'':32}" + " ".join(f"{i + 1:>3}" for i in range(len(columns))))
    for row in rows:
        cells = []
        for column in columns:
            why = row.leaves_out(column)
            if why:
                cells.append("–")
                notes[f"– {column}: {why}"] = None
                continue
            try:
                with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
                    warnings.simplefilter("ignore")
                    COLUMNS[column](row, Path(folder))
                cells.append("ok")
            except Exception as error:
                failures += 1
                cells.append("BAD")
                notes[f"BAD {row.label}, {column}: {str(error).strip()[:300] or type(error).__name__}"] = None
        print(f"{row.label:32}" + " ".join(f"{c:>3}" for c in cells), flush=True)
    print("\n".join(f"{i + 1:>3} {c}" for i, c in enumerate(columns)), *notes, f"{failures} bad", sep="\n")
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))

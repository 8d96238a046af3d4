"""A row of the table of proof: a configuration of a method on a kind of layer, and how to make rows for all kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import peft
import torch
from tests import models
from tests.storage import store
from torch import nn

import trimtab
from trimtab.method import method_of

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
    "norm": {"target_modules": ["norm"]},
    "parameter": {"target_parameters": ["lin0.weight"]},
    "experts": {"target_parameters": ["experts.up"]},
}
USUAL = [name for name in SITES if name != "norm"]
LINEAR = SITES["Linear"]
ALL = {"target_modules": ["lin0", "lin1", "c1", "emb", "conv1", "conv2", "conv3"]}
MERGES = ("merge = forward, unmerge exact", "merge_and_unload, unload")
ORACLE = ("keys in memory", "files", "reads PEFT's file", "PEFT reads ours")
PAIR = ("two adapters", "rows", "rows, training")
QUANTISED = "merge, quantised base"
NO_WEIGHT = ("forward = op(x, weight(W))", "safe_merge refuses NaN", *MERGES, QUANTISED)
INSIDE = "rows cannot be told apart inside a layer that computes in its own way"


@dataclass
class Row:
    """A configuration on a model. `without`: columns that do not apply, and why.

    A method whose effect is no weight leaves out the columns of merging by itself.
    """

    name: str
    kind: str
    options: dict[str, Any]
    model: str = "zoo"
    oracle: str | None = None  # why PEFT is not asked
    without: dict[str, str] = field(default_factory=dict)
    call: dict[str, torch.Tensor] = field(default_factory=dict)  # arguments of the method's own, by row of the batch
    codec: str = ""  # how the base is stored, see `storage.py`

    @property
    def label(self) -> str:
        return self.name if self.model in models.BARE else f"{self.name} ({self.model})"

    def leaves_out(self, column: str) -> str | None:
        """Why a column does not apply here, or None."""
        if column in ORACLE and self.kind not in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
            return "PEFT does not have this method"
        if self.oracle and column in ORACLE:
            return self.oracle
        if column in NO_WEIGHT and (depends := method_of(self.config()).depends):
            return f"its effect depends on {depends}"
        if column == "compile, two adapters":
            return (
                self.without.get("compile(fullgraph)") or self.without.get("two adapters") or self.without.get(column)
            )
        if self.codec and column in MERGES:
            return f"the base is quantised again: see {QUANTISED!r}"
        if column == QUANTISED and not self.codec:
            return "the base is not quantised"
        return self.without.get(column)

    def config(self, library: Any = trimtab) -> Any:
        classes = trimtab.CONFIGS if library is trimtab else peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
        options = {k: v.copy() if isinstance(v, (dict, list)) else v for k, v in self.options.items()}
        return classes[self.kind](**options)

    def base(self, **options: Any) -> nn.Module:
        return store(models.base(self.model, **options), self.codec)

    def plain(self) -> nn.Module:
        """The base as the adapter has it: frozen, which torch computes otherwise; its layers replicated if need be."""
        base = self.fresh().unload() if "layer_replication" in self.options else self.base()
        return base.requires_grad_(False)

    def fresh(self, library: Any = trimtab, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """A new model with the adapter as it starts."""
        return library.get_peft_model(self.base(dtype=dtype), self.config(library), **options).eval()

    def trained(self, library: Any = trimtab, seed: int = 5, **options: Any) -> Any:
        """A model whose adapter has moved."""
        return models.shake(self.fresh(library, **options), seed)

    def batch(self, rows: int = 4) -> dict[str, torch.Tensor]:
        batch = models.inputs(self.model, rows)
        return {k: v for k, v in batch.items() if k != "labels"}

    def output(self, model: Any, rows: int = 4, **options: Any) -> torch.Tensor:
        adapted = isinstance(model, (trimtab.PeftModel, peft.PeftModel))
        if self.call and adapted:
            options |= {k: v[:rows] for k, v in self.call.items()}
            model = model.base_model if isinstance(model, peft.PeftModel) else model
        return models.output(model, self.batch(rows), **options)


def declares(kind: str, option: str) -> bool:
    """Whether a method's file format knows an option."""
    return option in {f.name for f in fields(trimtab.CONFIGS[kind])}


def method(
    kind: str,
    options: Mapping[str, Any],
    refused: str = "",
    sites: str = "",
    without: Mapping[str, Mapping[str, str]] | None = None,
    label: str = "",
    call: Mapping[str, torch.Tensor] | None = None,
) -> list[Row]:
    """A row for every kind of layer that a method can stand on.

    `refused`: kinds that PEFT refuses, which a test makes sure of. `sites`: the kinds, where it is not all but "norm".
    `without`: columns that do not apply, with the reason, by kind of layer; under "" for every kind.
    """
    rows = []
    for site in sites.split() or USUAL:
        where = SITES[site]
        if not declares(kind, next(iter(where))):
            continue
        leaves = dict((without or {}).get("", {})) | dict((without or {}).get(site, {}))
        if site in ("attention", "parameter", "experts") and not trimtab.METHODS[kind].on_blocks:
            leaves |= {"rows": INSIDE, "rows, training": INSIDE}
        oracle = "PEFT refuses it" if site in refused.split() else None
        rows.append(
            Row(
                f"{label or kind} {site}",
                kind,
                dict(options) | where,
                oracle=oracle,
                without=leaves,
                call=dict(call or {}),
            )
        )
    return rows


def without(row: Row, why: str, *columns: str, oracle: str | None = None) -> Row:
    """A row that leaves out these columns too."""
    return replace(row, without=row.without | dict.fromkeys(columns, why), oracle=oracle)

"""An adapter's files: configuration, tensors with the base's fingerprint, a card. Written atomically, never pickled."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import prompt_state, signs, state
from ._version import __version__
from .errors import AdapterFileError
from .files import write_tensors, write_text
from .fingerprint import METADATA_KEY, Fingerprint, dump
from .match import ends_with
from .method import method_of

if TYPE_CHECKING:
    from .model import PeftModel

CARD = """---
base_model: {base}
library_name: peft
tags:
- {method}
---

# Adapter for {base}

A {method} adapter, trained with Trimtab {version}. Load it with

```python
from trimtab import PeftModel

model = PeftModel.from_pretrained(base_model, "{folder}")
```
"""


class Contents(NamedTuple):
    """What an adapter's files are to hold; with the fingerprint of its base, if known, and what `signs` notes."""

    cfg: Any
    tensors: Mapping[str, Tensor]
    fingerprint: Fingerprint | None
    note: str = ""


def contents(
    model: "PeftModel", name: str, embeddings: str | bool = "auto", state_dict: Mapping[str, Tensor] | None = None
) -> Contents:
    """What the files of one adapter of a model are to hold. Raises `AdapterFileError` where values are missing."""
    cfg = model.peft_config[name]
    if model.is_prompt_learning:
        tensors, note = prompt_state.state(model, name), ""
    else:
        note = signs.note(model.base_model, name)
        wanted = _has_embeddings(cfg) or model.vocabulary_resized if embeddings == "auto" else bool(embeddings)
        tensors = state.adapter_state(model.base_model, name, cfg, "base_model.", wanted, state_dict)
    if empty := [k for k, t in tensors.items() if t.is_meta or t.shape == (0,)]:
        raise AdapterFileError(
            f"{len(empty)} tensors of {name!r} have no values (first {empty[0]!r}); a sharded model needs `state_dict`"
        )
    return Contents(cfg, tensors, model.fingerprint, note)


def write_adapter(
    folder: Path, cfg: Any, tensors: Mapping[str, Tensor], fingerprint: Fingerprint | None, note: str = ""
) -> None:
    """Write an adapter's two files: its tensors, with what there is to know of their base, and `cfg`."""
    metadata = {"format": "pt", "trimtab": __version__}
    if note:
        metadata[signs.METADATA_KEY] = note
    if fingerprint is not None:
        metadata[METADATA_KEY] = dump(fingerprint, list(getattr(cfg, "modules_to_save", None) or []))
    first = {
        t.data_ptr(): k for k, t in reversed(list(tensors.items()))
    }  # tied tensors are written once each, as in PEFT
    apart = {
        k: t.contiguous() if first[t.data_ptr()] == k else t.clone(memory_format=torch.contiguous_format)
        for k, t in tensors.items()
    }
    write_tensors(folder / state.WEIGHTS_NAME, apart, metadata)
    saved_mode, cfg.inference_mode = cfg.inference_mode, True
    try:
        cfg.save_pretrained(folder)
    finally:
        cfg.inference_mode = saved_mode


def write_card(model: "PeftModel", name: str, folder: Path) -> None:
    """Write a folder's `README.md`; one that is there keeps its text and gets the facts it lacks in its head."""
    cfg = model.peft_config[name]
    base = cfg.base_model_name_or_path or type(model.get_base_model()).__name__
    card = CARD.format(base=base, method=cfg.kind.lower(), version=__version__, folder=folder.name)
    path = folder / "README.md"
    if not path.exists():
        write_text(path, card)
        return
    text = path.read_text(encoding="utf-8")
    head, body = re.fullmatch(r"(?:---\n(.*?)\n?---\n)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    facts = [line for line in card.split("---")[1].strip().splitlines() if ":" in line[:-1]]
    missing = [line for line in facts if not re.search(rf"^{line.partition(':')[0]}:", head or "", re.MULTILINE)]
    write_text(path, "\n".join(["---", *filter(None, [head]), *missing, "---", body]))


def _has_embeddings(cfg: Any) -> bool:
    targets = None if method_of(cfg).tied else getattr(cfg, "target_modules", None)  # rows of it are saved as such
    return isinstance(targets, list) and any(ends_with(t, state.EMBEDDINGS) for t in targets)


def read(path: Path, mapping: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; `mapping` renames keys by regular expressions.

    Raises `AdapterFileError` when the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise AdapterFileError(f"{path} is no readable safetensors file: {error}") from error
    for old, new in (mapping or {}).items():
        tensors = {re.sub(old, new, key): t for key, t in tensors.items()}
    return tensors, metadata

"""Prompts in files: the finished prompt, and what made it; nothing that inference or further training would lack."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import AdapterFileError
from .prompt_method import ENCODER_KEY, PROMPT_KEY, into_rows
from .state import Entry, LoadResult, _copy_into, fit
from .watch import evaluating
from .wrappers import ModulesToSaveWrapper

if TYPE_CHECKING:
    from .model import PeftModel


def _entries(model: "PeftModel", name: str) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """By file key, the tensors that make the prompt, and those of the modules trained in full."""
    encoder = model.prompt_encoder[name]
    own = {
        encoder.key(key): Entry(f"prompt_encoder.{name}.{key}", t, _copy_into(t))
        for key, t in encoder.state_dict(keep_vars=True).items()
    }
    saved = {}
    for path, module in model.base_model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            for key, t in module.modules_to_save[name].state_dict(keep_vars=True).items():
                held = f"base_model.{path}.modules_to_save.{name}.{key}"
                saved[f"base_model.{path}.{key}"] = Entry(held, t, _copy_into(t))
    if rows := encoder.table():
        own = {PROMPT_KEY: Entry(PROMPT_KEY, torch.cat(rows) if len(rows) > 1 else rows[0], into_rows(rows))}
    return own, saved


@torch.no_grad()
def state(model: "PeftModel", name: str) -> dict[str, Tensor]:
    """The tensors of adapter `name` by file key: the finished prompt, what made it, and the modules trained in full."""
    encoder = model.prompt_encoder[name]
    with evaluating(encoder):
        prompt = encoder()
    own, saved = _entries(model, name)
    return {key: e.tensor.detach() for key, e in (own | saved).items()} | {PROMPT_KEY: prompt.detach()}


def load(model: "PeftModel", name: str, tensors: Mapping[str, Tensor], strict: bool = True) -> LoadResult:
    """Fill adapter `name` from tensors by file key; returns the keys that were missing and those left over.

    A table takes the finished prompt; an encoder (in training) takes its own tensors, so that training goes on exactly.
    Raises `AdapterFileError` as `state.load_state` does, and when an encoder is to be trained of which the file holds
    only the result, as every file of Hugging Face PEFT does.
    """
    own, saved = _entries(model, name)
    if PROMPT_KEY not in own and PROMPT_KEY in tensors and not any(k in own for k in tensors):
        raise AdapterFileError(
            f"the file holds the finished prompt ({PROMPT_KEY!r}) but not what made it, so its training cannot go on; "
            "load it with is_trainable=False"
        )
    spare = {k for k in tensors if (k.startswith(ENCODER_KEY) if PROMPT_KEY in own else k == PROMPT_KEY)}
    return fit(own | saved, {}, {k: t for k, t in tensors.items() if k not in spare}, strict)

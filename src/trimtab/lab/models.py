"""The models of a run: as they came, as training begins, and fine-tuned."""

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from trimtab.lab import assets
from trimtab.lab.config import Settings
from trimtab.lab.tasks.base import Facts, Loaded


def untouched(settings: Settings, facts: Facts, place: str | None = None) -> Loaded:
    """A model as it came, but for a new head and the number format of the training.

    Args:
        settings: of the run.
        facts: what the head has to know.
        place: folder or hub id; the model of the settings if left out.
    """
    source = place or assets.resolve(settings.model.source)
    set_seed(settings.train.seed)
    loaded = settings.task.load(source, settings.model.revision, facts)
    if any(parameter.is_meta for parameter in loaded.model.parameters()):  # the weights were left in their files
        for path in loaded.new_modules:
            _bring_in(loaded.model.get_submodule(path))
    elif settings.model.dtype != "as_saved":
        loaded.model.to(getattr(torch, settings.model.dtype))
    return loaded


def build(settings: Settings, facts: Facts) -> Loaded:
    """The model as training begins; its new head depends on the seed alone, so it is the same for every method."""
    loaded = untouched(settings, facts)
    set_seed(settings.train.seed)
    return settings.method.wrap(loaded, assets.resolve(settings.model.source), settings.task.peft_type)


def tuned(settings: Settings, facts: Facts, folder: Path) -> Loaded:
    """The fine-tuned model, on its base in the number format of the training."""
    source = assets.resolve(settings.model.source)
    return settings.method.load(source, str(folder), lambda place: untouched(settings, facts, place))


def _bring_in(module: Any) -> None:
    """Give a module that is in no file tensors in memory, for an adapter to fill, and its own forward back."""
    for part in module.modules():
        for name in ("_hf_hook", "_old_forward", "forward"):  # what Accelerate has put there
            vars(part).pop(name, None)
    module.to_empty(device="cpu")

"""Whether a model that was saved and loaded again says the same."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from trimtab.lab.config import Settings
from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.models import tuned
from trimtab.lab.tasks.base import Facts, Loaded

CLOSE = 1e-4
"""Difference, as a share of the largest output, that different rounding may make."""


def look_at_reload(
    diagnosis: Diagnosis, settings: Settings, facts: Facts, loaded: Loaded, batch: dict[str, Any]
) -> None:
    """Save the model, load it as `trimtab predict` does, and note how far their outputs are apart."""
    device = next(loaded.model.parameters()).device
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        again = tuned(settings, facts, Path(folder))
    before, after = (_outputs(model, batch) for model in (loaded.model, again.model.to(device)))
    if before.shape != after.shape:
        found = f"outputs {tuple(before.shape)} become {tuple(after.shape)}"
    elif before.equal(after):
        diagnosis.add("info", "save and load", "the outputs are bit-equal")
        return
    else:
        gap = float((before - after).abs().max())
        found = f"the largest difference of an output is {gap:.3g}, the largest output {float(before.abs().max()):.3g}"
        if gap <= CLOSE * float(before.abs().max()):
            diagnosis.add("info", "save and load", found)
            return
    diagnosis.add(
        "error",
        "save and load",
        f"the loaded model says something else: {found}",
        "what was trained is not what is saved: look at modules_to_save, save_embedding_layers and tied weights",
    )


def _outputs(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What a model puts out for a batch."""
    given = {key: value for key, value in batch.items() if key != "labels"} or batch
    if getattr(model.config, "is_encoder_decoder", False):
        given = batch
    model.eval()
    with torch.no_grad():
        outputs = model(**given)
    return outputs["logits"].float()

"""What fine-tuning cost: a model's perplexity on general text, as it came and when it is done."""

from dataclasses import dataclass
from typing import Any

import torch

from trimtab.lab.config import Settings
from trimtab.lab.data import prepare
from trimtab.lab.evaluate import intervals, paired
from trimtab.lab.files import fingerprint, read_lines, write_lines
from trimtab.lab.folders import RunFolder
from trimtab.lab.metrics import Row
from trimtab.lab.metrics.generation import Perplexity
from trimtab.lab.tasks.base import Example, Loaded

MOST = 500
"""Examples that are read at most."""
BATCH_SIZE = 8
"""Examples at a time, the same for all methods: in half precision the padding can be seen in the losses."""


@dataclass(frozen=True)
class General:
    """General text, on which a model is measured before and after.

    Args:
        settings: of the run.
        examples: the text.
    """

    settings: Settings
    examples: list[Example]

    def read(self, loaded: Loaded) -> list[Row]:
        """The model's losses on the text, in the number format of training."""
        task, train = self.settings.task.general(), self.settings.train
        assert task is not None
        device = next(loaded.model.parameters()).device
        formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
        with torch.autocast(device.type, formats.get(train.precision), enabled=train.precision in formats):
            return task.answer(loaded.model, loaded.processor, self.examples, {}, BATCH_SIZE)

    def before(self, loaded: Loaded) -> list[Row]:
        """The same of a model that nothing was done to; what it takes does not count as memory of the training."""
        cuda = torch.cuda.is_available()
        loaded.model.to("cuda" if cuda else "cpu")
        rows = self.read(loaded)
        if cuda:
            loaded.model.to("cpu")
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return rows

    def forgetting(self, before: list[Row], after: list[Row]) -> dict[str, Any]:
        """Perplexity before and after, with intervals, and their difference on the same examples; more is forgotten."""
        metric, evaluate = Perplexity(), self.settings.evaluate
        first, last = (intervals([metric], rows, evaluate)[metric.name] for rows in (before, after))
        found = {"metric": metric.name, "before": first, "after": last}
        size = {"examples": len(self.examples), "hash": fingerprint(self.examples)}
        return found | paired(metric, before, after, evaluate) | size


def general(run: RunFolder, settings: Settings) -> General | None:
    """The text that `evaluate.forgetting` names, the same for all methods; None where it names none.

    It is read once and kept beside the examples.

    Raises:
        DataError: it cannot be read, or lacks the columns of the task.
    """
    data, task = settings.evaluate.forgetting, settings.task.general()
    if data is None or task is None or settings.trial:
        return None
    key = fingerprint([data.model_dump(mode="json"), task.model_dump(mode="json")])
    file = run.data / f"general-{key[:12]}.jsonl"
    if not file.exists():
        write_lines(file, prepare(data, task).parts["test"][:MOST])
    return General(settings, read_lines(file))

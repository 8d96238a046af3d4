"""Uses a finished method on new inputs."""

from pathlib import Path
from typing import Any

from trimtab.lab.config import Settings
from trimtab.lab.files import read_json
from trimtab.lab.folders import MethodFolder

BATCH_SIZE = 32


def predict(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """The method's answer to each text.

    Args:
        folder: `runs/<name>/<method>`.
        texts: the inputs.

    Raises:
        RunError: the folder holds no finished method.
    """
    MethodFolder(folder).require_finished()
    import torch
    import transformers

    from trimtab.lab.models import tuned

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = Settings.model_validate(read_json(folder / "settings.json"))
    facts = read_json(folder / "facts.json")
    task = settings.task
    loaded = tuned(settings, facts, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded.model.to(device)
    questions = [task.question(text) for text in texts]
    return task.answer(loaded.model, loaded.processor, questions, facts, BATCH_SIZE)

"""What it takes to understand and to repeat a run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.lab import assets
from trimtab.lab.config import Experiment, Settings
from trimtab.lab.files import fingerprint
from trimtab.lab.measure import environment
from trimtab.lab.origin import git_commit, model_hashes


def manifest(experiment: Experiment, file: Path, data: dict[str, Any], settings: dict[str, Settings]) -> dict[str, Any]:
    """The manifest of a run: what was asked, of which data, with which code, on which machine.

    Args:
        experiment: as checked.
        file: where it was written.
        data: the facts of the prepared data.
        settings: of every method, by its title.
    """
    resolved = {title: wanted.model_dump(mode="json") for title, wanted in settings.items()}
    return {
        "name": experiment.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiment": experiment.model_dump(mode="json"),
        "seeds": {
            "split": experiment.data.split.seed,
            "train": {title: wanted.train.seed for title, wanted in settings.items()},
            "evaluate": experiment.evaluate.seed,
        },
        "data": data,
        "model": model_hashes(assets.resolve(experiment.model.source), experiment.model.revision),
        "settings": {title: {"hash": fingerprint(values), **values} for title, values in resolved.items()},
        "git": git_commit(file.resolve().parent),
        "environment": environment(),
    }

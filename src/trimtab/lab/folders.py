"""Where things lie in the folder of a run, and how its parts tell how far they have come."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.lab.errors import RunError
from trimtab.lab.files import read_json
from trimtab.lab.text import allowed


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/`: one experiment."""

    path: Path

    @property
    def data(self) -> Path:
        """The examples as divided."""
        return self.path / "data"

    @property
    def manifest(self) -> Path:
        """What it takes to understand and repeat the run."""
        return self.path / "manifest.json"

    @property
    def results(self) -> Path:
        """The measured numbers of every finished method."""
        return self.path / "results.json"

    def method(self, title: str) -> "MethodFolder":
        """The folder of one method."""
        return MethodFolder(self.path / title)


@dataclass(frozen=True)
class MethodFolder:
    """`runs/<name>/<method>/`: a finished result. While it is being trained it is called `<method>.partial`."""

    path: Path

    @property
    def partial(self) -> Path:
        """The folder while the method is being trained."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def finished(self) -> bool:
        """Whether the result is there and whole."""
        return (self.path / "metrics.json").exists()

    def saved_settings(self) -> dict[str, Any] | None:
        """The settings of the result, or of the training under way; None if there is neither."""
        for folder in (self.path, self.partial):
            if (folder / "settings.json").exists():
                return dict(read_json(folder / "settings.json"))
        return None

    def require_finished(self) -> None:
        """Raise RunError unless the result is there and whole."""
        if self.finished:
            return
        if self.partial.exists():
            raise RunError(f"{self.path} is not finished; run its experiment again, it goes on where it stopped")
        done = [folder.name for folder in self.path.parent.glob("*/") if MethodFolder(folder).finished]
        hint = allowed(self.path.name, done) if done else "give the folder of a method: runs/<name>/<method>"
        raise RunError(f"there is no finished method in {self.path}; {hint}")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder; the Trainer writes `trainer_state.json` last, so it tells."""
    numbered = {int(path.name.partition("-")[2]): path for path in folder.glob("checkpoint-*")}
    whole = [number for number, path in numbered.items() if _readable(path / "trainer_state.json")]
    return numbered[max(whole)] if whole else None


def _readable(path: Path) -> bool:
    try:
        read_json(path)
    except (OSError, json.JSONDecodeError):
        return False
    return True

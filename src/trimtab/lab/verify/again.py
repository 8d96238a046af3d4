"""The second run: the same settings in fresh processes, in a folder beside the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from trimtab.lab.config import Data, Settings
from trimtab.lab.data import Prepared, load_parts, prepare
from trimtab.lab.errors import DataError, RunError
from trimtab.lab.files import read_json
from trimtab.lab.folders import MethodFolder, RunFolder
from trimtab.lab.progress import RunProgress
from trimtab.lab.sweep import note, train


@contextmanager
def beside(run: RunFolder, keep: bool) -> Iterator[RunFolder]:
    """A folder for the second run, gone at the end; or, with `keep`, left as `<name>.second`."""
    kept = run.path.with_name(f"{run.path.name}.second")
    if keep and kept.exists():
        raise RunError(f"{kept} is there already: a second run that was kept; delete or rename it")
    with TemporaryDirectory(dir=run.path.parent, prefix=f".{run.path.name}.verify-") as folder:
        second = RunFolder(Path(folder) / run.path.name)
        second.path.mkdir()
        yield second
        if keep:
            second.path.rename(kept)


def examples(run: RunFolder, manifest: dict[str, Any], task: Any) -> tuple[Prepared, str | None]:
    """The examples prepared anew from their source; where that is gone, those that were kept, and why."""
    try:
        return prepare(Data.model_validate(manifest["experiment"]["data"]), task), None
    except (DataError, ValidationError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        return Prepared(parts=load_parts(run.data)), f"the data could not be read from its source: {reason}"


def settings_of(manifest: dict[str, Any], method: MethodFolder, data_hash: str) -> Settings:
    """The settings of a run as the manifest notes them; of one whose learning rate was tuned, its `settings.json`.

    Raises:
        RunError: they are not valid, or what they name is gone.
    """
    noted = manifest["settings"].get(method.path.name) or method.saved_settings() or {}
    values = {key: value for key, value in noted.items() if key != "hash"}
    try:
        return Settings.model_validate(values | {"data": data_hash})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise RunError(f"{method.path}: it cannot be run again with the settings in the manifest: {wrong}") from None


def again(
    run: RunFolder, second: RunFolder, settings: dict[str, Settings], prepared: Prepared, console: Console
) -> dict[str, str]:
    """Train and measure runs a second time, each in a process of its own; what went wrong, by title."""
    prepared.save(second.data)
    failed = {}
    with RunProgress(console, list(settings)) as progress:
        for title, wanted in settings.items():
            first = read_json(run.method(title).path / "metrics.json")
            note(second.method(title), wanted, first["group"], first["options"], run.path.name)
            progress.start(title)
            error = train(second, title, progress)
            progress.done(title, "failed" if error else "finished")
            if error:
                failed[title] = error
    return failed

"""The folder that a result goes into: whole, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.lab.errors import RunError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write to; it takes the place of `path` at the end, or vanishes if anything is raised.

    Raises:
        RunError: there is something at `path` already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is there already, and nothing is overwritten; name a new folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)  # an empty folder gives way
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

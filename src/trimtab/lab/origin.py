"""Which code, and which model files, a result was made with."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def code() -> dict[str, Any]:
    """Trimtab's own code: a hash of its source files, and the commit where they lie in a repository."""
    import trimtab

    folder = Path(trimtab.__file__).parent
    return {"hash": _source_hash(folder), **(git_commit(folder) or {})}


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository around a folder, and whether files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def model_files(source: str, revision: str | None = None) -> Path | None:
    """The folder that holds the files of a model; of a hub id, the one in the cache; None if there is none."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def model_hashes(source: str, revision: str | None = None) -> dict[str, str]:
    """The sha256 of each file of a model that decides what it computes; empty where the files are not here."""
    folder = model_files(source, revision)
    found = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)}) if folder else []
    return {path.name: file_hash(path) for path in found}


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _source_hash(folder: Path) -> str:
    every = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        every.update(f"{path.relative_to(folder).as_posix()}\0{file_hash(path)}\n".encode())
    return every.hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

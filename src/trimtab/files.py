"""Files: written whole or not at all, found in a folder or on a hub."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import AdapterFileError, listing


def write(path: Path, fill: Callable[[str], object]) -> None:
    """Let `fill` write a temporary file beside `path`, flush it to disk, and only then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        fill(temporary)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    write(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically."""
    from safetensors.torch import save_file

    write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def find(source: str | os.PathLike[str], name: str, subfolder: str | None = None, **hub: Any) -> Path:
    """The path of file `name` in a local folder, or else in a hub repository (downloaded by `huggingface_hub`).

    Raises `AdapterFileError` when it is in neither.
    """
    folder = Path(source, subfolder or "")
    if (folder / name).is_file():
        return folder / name
    if folder.is_dir():
        held = sorted(p.name for p in folder.iterdir())
        hint = (
            "pickled weights are never read; convert them to safetensors"
            if "adapter_model.bin" in held
            else "is it an adapter?"
        )
        raise AdapterFileError(f"no {name} in {folder}: the folder holds {listing(held) or 'nothing'} ({hint})")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise AdapterFileError(
            f"{source} is no folder here, and to look on a hub install `huggingface_hub` (pip install 'trimtab[hf]')"
        ) from error
    allowed = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "repo_type")
    try:
        return Path(
            hf_hub_download(str(source), name, subfolder=subfolder, **{k: v for k, v in hub.items() if k in allowed})
        )
    except Exception as error:
        raise AdapterFileError(
            f"{name} of {str(source)!r} is neither in a folder of that name nor to be had from the hub: {error}"
        ) from error

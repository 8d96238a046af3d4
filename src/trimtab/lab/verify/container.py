"""A verification inside a container, with the Python and the packages that the manifest notes."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

import trimtab
from trimtab.lab import assets
from trimtab.lab.errors import LabError
from trimtab.lab.files import read_json
from trimtab.lab.verify.verify import find

ENGINES = ("podman", "docker")


def verify_within(place: Path, tolerance: float, console: Console) -> int:
    """Verify a run in a container; returns the exit status of the verification there.

    Raises:
        LabError: no container engine is installed, or the image cannot be built.
    """
    run, _ = find(place)
    manifest = read_json(run.manifest)
    engine = next(filter(shutil.which, ENGINES), None)
    if engine is None:
        raise LabError(
            f"--container needs {' or '.join(ENGINES)}, and neither is installed here. With one of them, it would "
            f"build an image from\n\n{recipe(manifest)}\nand verify {place} in it, without a network. Without "
            "--container, the run is verified with the packages that are installed here."
        )
    image = f"trimtab-verify:{run.path.name.lower()}"
    with TemporaryDirectory() as folder:
        (Path(folder) / "Containerfile").write_text(recipe(manifest), encoding="utf-8")
        shutil.copytree(Path(trimtab.__file__).parent, Path(folder) / "trimtab")
        console.print(f"{engine} builds {image}", markup=False)
        if subprocess.run([engine, "build", "-t", image, "-f", f"{folder}/Containerfile", folder]).returncode:
            raise LabError(f"{engine} could not build the image; what it said stands above")
    return subprocess.run(command(engine, image, place, run.path.parent, manifest, tolerance)).returncode


def recipe(manifest: dict[str, Any]) -> str:
    """A Containerfile with the manifest's versions, and the code that is installed here."""
    environment = manifest["environment"]
    packages = {name: version for name, version in environment["packages"].items() if version and name != "trimtab"}
    pinned = " ".join(f'"{name}=={version}"' for name, version in packages.items())
    others = "typer rich pydantic pyyaml scikit-learn matplotlib psutil"
    return (
        f"FROM python:{environment['python']}-slim\n"
        f"RUN pip install --no-cache-dir {pinned} {others}\n"
        "COPY trimtab /code/trimtab\n"
        "ENV PYTHONPATH=/code\n"
    )


def command(engine: str, image: str, place: Path, runs: Path, manifest: dict[str, Any], tolerance: float) -> list[str]:
    """The command that verifies a run in an image: its folder can be written, its model and its data only read."""
    experiment = manifest["experiment"]
    named = [assets.resolve(experiment["model"]["source"]), experiment["data"]["source"], str(assets.cache())]
    named += [part for part in experiment["data"]["split"].values() if isinstance(part, str)]
    read = sorted({source for source in named if os.path.isabs(source) and Path(source).exists()})
    mounts = [f"--volume={path}:{path}:ro" for path in read] + [f"--volume={runs.resolve()}:{runs.resolve()}"]
    threads = manifest["environment"]["threads"]
    options = ["run", "--rm", "--network=none", *mounts, f"--env=TRIMTAB_CACHE={assets.cache()}"]
    inside = ["python", "-c", "from trimtab.lab.cli import app; app()", "verify", str(place.resolve())]
    return [engine, *options, f"--env=OMP_NUM_THREADS={threads}", image, *inside, "--tolerance", f"{tolerance:g}"]

"""What pyproject.toml and the files around it promise."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]


def name_of(requirement: str) -> str:
    """``"trimtab[hf]>=1"`` -> ``"trimtab"``, normalised as package indexes do."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def version_in_source() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "src/trimtab/_version.py").read_text(), re.M)[1]


def test_the_version_is_the_same_everywhere():
    import trimtab

    assert PROJECT["dynamic"] == ["version"], "the version belongs in _version.py only"
    assert trimtab.__version__ == version_in_source()
    assert f"## [{version_in_source()}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_version_is_the_one_in_the_source():
    try:
        installed = importlib.metadata.version("trimtab")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("trimtab is imported from the folder, not installed")
    assert installed == version_in_source(), "run `make setup`: the installation is older than _version.py"


@pytest.mark.parametrize("requirement", DECLARED)
def test_a_dependency_says_what_it_is_for(requirement):
    line = re.search(rf'^ *"{re.escape(requirement)}", *(#.*)?$', TEXT, re.M)
    assert line, f"{requirement}: declare it on a line of its own"
    assert line[1], f"{requirement}: say in a comment on its line what it is for"
    assert len(line[1]) > 10, f"{requirement}: {line[1]!r} does not say what it is for"


def test_the_core_needs_torch_and_safetensors_only():
    assert sorted(map(name_of, PROJECT["dependencies"])) == ["safetensors", "torch"]


def test_constraints_are_exact_and_cover_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    odd = [line for line in packages if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)]
    assert not odd, f"not `name==version` with a normalised name and no local suffix: {odd}"
    assert packages == sorted(packages, key=lambda line: line.split("==")[0])
    missing = {name_of(r) for r in DECLARED} - set(pins()) - {"trimtab"}
    assert not missing, f"declared in pyproject.toml, but without a version in constraints.txt: {missing}"


def test_pins_lie_within_the_declared_ranges():
    version = pytest.importorskip("packaging.requirements")
    for requirement in map(version.Requirement, DECLARED):
        pin = pins().get(name_of(requirement.name))
        assert pin is None or requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_the_licence_is_in_the_house():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_types_are_shipped():
    assert (ROOT / "src/trimtab/py.typed").exists()


def test_ci_runs_what_a_newcomer_runs():
    run = ROOT / ".ci/run"
    assert run.stat().st_mode & 0o111, ".ci/run is not executable"
    assert re.search(r"^exec make .*\btest$", run.read_text(), re.M)

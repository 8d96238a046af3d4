"""What the README and the guide show works: Python runs, commands exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ["README.md", "CONTRIBUTING.md"]


def blocks(file: str, language: str) -> list[str]:
    """Code blocks of one language that start at the margin (indented ones are sketches)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / file).read_text(), re.M | re.S)


def commands(*programs: str) -> list[tuple[str, list[str]]]:
    lines = [(file, line) for file in GUIDES for block in blocks(file, "sh") for line in block.splitlines() if line]
    return [(file, words) for file, line in lines if (words := shlex.split(line))[0] in programs]


@pytest.mark.parametrize("number", range(len(blocks("README.md", "python"))))
def test_a_python_block_of_the_readme_runs(number, tmp_path):
    pytest.importorskip("transformers")
    code = blocks("README.md", "python")[number]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_shows_the_two_commands_and_some_python():
    assert blocks("README.md", "sh")[0].splitlines() == ["make demo", "make test"]
    assert blocks("README.md", "python")


def test_every_command_is_of_a_kind_that_is_checked_here():
    known = {"make", "trimtab", "pip", "pytest", "pre-commit", "."}
    every = {line.split()[0] for file in GUIDES for block in blocks(file, "sh") for line in block.splitlines() if line}
    assert every <= known, f"add a check for {every - known}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    wrong = [f"{file}: make {words[1]}" for file, words in commands("make") if words[1] not in targets]
    assert not wrong, wrong


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    said = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert phony == set(re.findall(r"^  ([a-z]+) ", said, re.M))


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for file, words in commands("pip"):
        for name in re.findall(r"\[(.+)\]", " ".join(words)):
            assert set(name.split(",")) <= set(extras), f"{file}: {' '.join(words)}"


def test_subcommands_exist():
    main = pytest.importorskip("typer.main")
    from trimtab.lab.commands import app

    known = set(main.get_command(app).commands)
    wrong = [f"{file}: trimtab {words[1]}" for file, words in commands("trimtab") if words[1] not in known]
    assert not wrong, f"{wrong}; there are {sorted(known)}"


def test_files_that_commands_name_exist():
    words = {word for _, words in commands("trimtab", "pytest") for word in words}
    named = [word for word in words if word.startswith(("recipes/", "tests/"))]
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, missing


@pytest.mark.parametrize("file", GUIDES)
def test_links_lead_somewhere(file):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / file).read_text())
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing, missing

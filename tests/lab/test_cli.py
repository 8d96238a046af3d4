"""The command itself: what it teaches, and how it fails."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trimtab.lab.commands import app


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


@pytest.mark.parametrize("name", ["run", "predict", "schema"])
def test_help_teaches_with_an_example(name):
    assert f"Example: trimtab {name}" in command(name, "--help").output


def test_help_begins_with_the_first_thing_to_try():
    assert "trimtab run recipes/quickstart.yaml" in command("--help").output


def test_help_imports_nothing_heavy_of_its_own():
    code = (
        "import sys, trimtab; before = set(sys.modules); import trimtab.lab.commands; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "datasets", "pydantic", "sklearn", "matplotlib"} & set(done.stdout.split())


def test_mistakes_are_told_without_a_traceback(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\n")
    done = command("run", file)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"4 mistakes in {file}; nothing was started\n  {file}:1: the key 'data' is missing\n")


def test_nothing_to_predict(tmp_path):
    done = command("predict", tmp_path)
    assert done.exit_code == 2
    assert done.stderr == "nothing to answer: give texts after the folder, or a file of them with --file\n"


def test_no_such_file_of_texts(tmp_path):
    done = command("predict", tmp_path, "--file", tmp_path / "none.txt")
    assert done.exit_code == 2
    assert done.stderr == f"no such file: {tmp_path / 'none.txt'}\n"


def test_the_schema_is_json():
    assert set(json.loads(command("schema").output)["required"]) == {"name", "model", "task", "data", "methods"}

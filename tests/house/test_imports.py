"""Importing: what `import trimtab` loads, who may import whom, what the command says without its extra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"


def python(code: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that finds this checkout first."""
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def measured(code: str):
    done = python(code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_loads_torch_safetensors_and_the_standard_library_only():
    # With what torch loads by itself taken away (numpy, say), nothing else may remain.
    extra = measured(
        """
        import json, sys
        import torch, safetensors, safetensors.torch
        before = {name.split(".")[0] for name in sys.modules}
        import trimtab
        after = {name.split(".")[0] for name in sys.modules}
        extra = after - before - {"trimtab"} - sys.stdlib_module_names
        print(json.dumps([*sorted(extra), *(name for name in sys.modules if name.startswith("trimtab.lab"))]))
        """
    )
    assert extra == [], f"import trimtab also loads {extra}"


def test_the_command_without_its_extra_says_what_to_install():
    done = python(
        """
        import sys
        for name in ("typer", "rich", "pydantic", "yaml", "transformers", "datasets"):
            sys.modules[name] = None  # as if it were not installed
        sys.argv = ["trimtab", "run", "recipes/quickstart.yaml"]
        from trimtab.lab.cli import app
        sys.exit(app())
        """
    )
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None), "the command did nothing and called it a success"
    assert "Traceback" not in said, said
    assert "trimtab[lab]" in said, f"no word of the extra that is missing: {said!r}"


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    pytest.importorskip("importlinter")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(SRC / "trimtab", tmp_path / "src" / "trimtab", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_import_contracts_are_kept(copy):
    done = contracts(copy)
    assert done.returncode == 0, done.stdout + done.stderr


# A contract that nothing can break holds nothing: each of these must be refused, and by the contract named.
VIOLATIONS = {
    "the core names a method": ("config.py", "import trimtab.methods", "Layers"),
    "the core names the workbench, inside a function": ("model.py", "def f():\n    import trimtab.lab", "Layers"),
    "the errors depend on the core": ("errors.py", "from trimtab import config", "Layers"),
    "a module without a place": ("loose.py", "", "Layers"),
    "a method names the workbench": ("methods/__init__.py", "import trimtab.lab", "Layers"),
    "the root loads the workbench": ("__init__.py", "import trimtab.lab.cli", "The package root"),
    "the core imports the root": ("layer.py", "from trimtab import get_peft_model", "Nothing in the library"),
    "triton in the core": ("layer.py", "import triton.language", "triton"),
    "triton in the workbench": ("lab/__init__.py", "import triton", "triton"),
    "a parser in the core": ("config.py", "def f():\n    import yaml", "Only the workbench"),
    "the reference inside": ("lab/__init__.py", "import peft", "The reference"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_import_contracts_are_real(copy, case):
    file, code, contract = VIOLATIONS[case]
    with (copy / "src" / "trimtab" / file).open("a") as source:
        source.write(f"\n{code}\n")
    done = contracts(copy)
    assert done.returncode == 1, f"not noticed: {case}\n{done.stdout}{done.stderr}"
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), f"{case}: broken are {broken}"


def test_triton_may_stand_in_fast(copy):
    fast = copy / "src" / "trimtab" / "fast"
    fast.mkdir(exist_ok=True)
    (fast / "__init__.py").touch()
    (fast / "example_kernel.py").write_text("import triton\n")
    done = contracts(copy)
    assert done.returncode == 0, done.stdout + done.stderr

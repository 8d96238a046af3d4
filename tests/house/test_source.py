"""Habits that can be read off the source: small files and functions, declared imports, no names sniffed."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "trimtab"
SOURCES = sorted(SRC.rglob("*.py"))

FILE_LINES = 400
METHOD_LINES = 150  # "about 120": the file of a method, config included
FUNCTION_LINES = 50  # "about 40", without signature and docstring
# Files that may be longer: path under src/trimtab -> (lines, why).
LONGER = {
    "methods/lora.py": (200, "four published variants in one config, and every field of PEFT's file format"),
    "methods/adalora.py": (190, "a parametrisation, and how its ranks are cut in training"),
}

# The package that is imported -> the distribution that pyproject.toml names.
DISTRIBUTION = {
    "huggingface_hub": "huggingface-hub",
    "pydantic_core": "pydantic",  # its errors live there; pydantic requires one exact version of it
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Imported where it is asked for, by people who have it anyway; nothing we could usefully declare.
OPTIONAL = {
    "triton": "comes with torch where there is a GPU",
    "bitsandbytes": "a base that is quantised by it",
    "torchao": "a base that is quantised by it",
    "pywt": "wavelets other than Haar's, for those who ask for them",
    "diffusers": "a pipeline that looks for `peft`",
    "gguf": "adapters for llama.cpp, for those who install the extra",
    "numpy": "Uni-LoRA's projection, which is drawn with it",
    "tqdm": "a progress bar where it is installed; there is none otherwise",
}


def where(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def names_of_methods(path: Path) -> set[str]:
    """What `name = ...` says in the classes of a file that derive from some Method, in lower case."""
    found = set()
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Method") for base in node.bases):
            for line in node.body:
                if isinstance(line, ast.Assign):
                    found |= assigned(line, "name")
    return found


def assigned(line: ast.Assign, wanted: str) -> set[str]:
    """The strings that an assignment, possibly of several names at once, gives to one name."""
    pairs = [(line.targets[0], line.value)]
    if isinstance(line.targets[0], ast.Tuple) and isinstance(line.value, ast.Tuple):
        pairs = list(zip(line.targets[0].elts, line.value.elts, strict=False))
    matching = [value for target, value in pairs if ast.unparse(target) == wanted]
    return {value.value.lower() for value in matching if isinstance(value, ast.Constant) and value.value}


METHODS = {path: names for path in sorted((SRC / "methods").glob("*.py")) if (names := names_of_methods(path))}


def test_methods_are_found():
    assert METHODS, "no class with a `name` derives from a Method in methods/: the tests below would test nothing"


def test_files_are_small():
    long = {}
    for path in SOURCES:
        usual = METHOD_LINES if path in METHODS else FILE_LINES
        limit, _ = LONGER.get(where(path), (usual, ""))
        lines = len(path.read_text().splitlines())
        if lines > limit:
            long[where(path)] = f"{lines} lines, at most {limit}"
    assert not long, long


def test_the_readme_lists_every_method():
    # Read from the files, not from the registry: a method that is not registered should be missed too.
    table = (ROOT / "README.md").read_text().split("### Methods in this version")[1].split("\n## ")[0]
    said = re.sub(r"[^a-z0-9]", "", table.lower())
    missing = {name for names in METHODS.values() for name in names if name.replace("_", "") not in said}
    assert not missing, f"no row in the README's table: {missing}"


def test_functions_are_small():
    long = {}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                if lines > FUNCTION_LINES:
                    long[f"{where(path)}:{node.lineno} {node.name}"] = f"{lines} lines, at most {FUNCTION_LINES}"
    assert not long, long


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])]
    return {re.match(r"[\w-]+", line)[0] for line in lines}


def test_what_is_imported_is_declared():
    core, lab = declared("hf"), declared("hf", "lab")
    missing = {}
    for path in SOURCES:
        allowed = lab if where(path).startswith("lab/") else core
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"trimtab"}:
                if DISTRIBUTION.get(name, name) not in allowed and name not in OPTIONAL:
                    missing.setdefault(name, []).append(f"{where(path)}:{node.lineno}")
    assert not missing, f"imported, but not in pyproject.toml for that part of the package: {missing}"


def test_a_methods_name_stands_in_its_own_file_only():
    every = set().union(*METHODS.values())
    found = []
    for path in SOURCES:
        # compat speaks other people's names, and an experiment file names methods.
        if path in METHODS or where(path).split("/")[0] in {"lab", "compat", "tuners", "utils"}:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare):
                constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                words = {value.lower() for value in constants if isinstance(value, str)}
                found += [f"{where(path)}:{node.lineno} compares with {word!r}" for word in sorted(words & every)]
    assert not found, found


def test_public_things_have_docstrings():
    import trimtab

    silent = []
    for name in trimtab.__all__:
        thing = getattr(trimtab, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            continue
        if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):  # a dataclass without one gets its signature
            silent.append(name)
        if inspect.isclass(thing):
            own = [m for k in thing.__mro__ if k.__module__.startswith("trimtab") for m in vars(k) if m[0] != "_"]
            members = {m: inspect.getattr_static(thing, m) for m in own}
            callables = [m for m, v in members.items() if isinstance(v, FunctionType | classmethod | property)]
            # getdoc looks at what is overridden too.
            silent += [f"{name}.{m}" for m in callables if not inspect.getdoc(getattr(thing, m))]
    assert not silent, f"say what these do, with shapes, units and what is raised: {silent}"


def test_no_pickle_is_read():
    calls = re.compile(r"\btorch\.load\(|\bpickle\.loads?\(|\bjoblib\.load\(|allow_pickle=True")
    found = [f"{where(path)}: {call}" for path in SOURCES for call in calls.findall(path.read_text())]
    assert not found, found


def files_of_the_project() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_place_of_one_machine():
    # Written in pieces, so that this file does not find itself.
    home = r"(?<![\w.$}~-])/(?:" + "|".join(["root", "home", "work", "opt", "tmp", "Users", "mnt"]) + r")/\w"
    index = "|".join(["pypi" + ".org", "python" + "hosted.org", "download." + "pytorch.org", "index-url" + " ?="])
    place = re.compile(f"{home}|{index}")
    found = []
    for path in files_of_the_project():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        name = path.relative_to(ROOT)
        found += [f"{name}:{n}: {line.strip()[:80]}" for n, line in enumerate(lines, 1) if place.search(line)]
    assert not found, "paths of one machine or addresses of a package index:\n" + "\n".join(found)

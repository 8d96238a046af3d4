"""Reads an experiment file and reports all of its mistakes at once, each with its line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trimtab.lab.config import Experiment
from trimtab.lab.errors import ExperimentError
from trimtab.lab.schema import Choice
from trimtab.lab.text import allowed, count

Place = tuple[str | int, ...]
"""Where a value stands in the file: keys and positions from the top."""


class Problems:
    """The mistakes of one file, by line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        """Note one mistake."""
        self.found.append((line, message))

    def raise_if_any(self) -> None:
        """Raise ExperimentError with every mistake, in the order of the file."""
        if self.found:
            lines = [f"  {self.file}:{line}: {message}" for line, message in sorted(self.found)]
            title = f"{count(len(lines), 'mistake')} in {self.file}; nothing was started"
            raise ExperimentError("\n".join([title, *lines]))


def load_experiment(file: Path) -> Experiment:
    """Read and check an experiment file.

    Raises:
        ExperimentError: the file cannot be read, or has mistakes; lists all of them.
    """
    problems = Problems(file)
    node = _compose(file, problems)
    problems.raise_if_any()
    lines: dict[Place, int] = {(): 1}
    _index(node, (), lines, problems)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for position, message in _name_clashes(values):
        problems.add(lines["methods", position], f"methods[{position}]: {message}")
    try:
        experiment = Experiment.model_validate(values, context={"folder": file.parent})
    except ValidationError as error:
        for place, message in _messages(error.errors(include_url=False), lines):
            problems.add(lines[place], f"{_spell(place)}: {message}" if place else message)
    problems.raise_if_any()
    return experiment


def _compose(file: Path, problems: Problems) -> yaml.Node | None:
    """The file as a tree of YAML nodes, which know their lines."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"cannot read the experiment file {file}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problems.add(mark.line + 1 if mark else 1, f"not valid YAML: {getattr(error, 'problem', error)}")
        return None
    if not isinstance(node, yaml.MappingNode):
        problems.add(1, f"an experiment is a mapping of keys to values; {allowed('', Experiment.model_fields)}")
    return node


def _index(node: yaml.Node | None, place: Place, lines: dict[Place, int], problems: Problems) -> None:
    """Note the line of every key and list entry; a key that stands twice is a mistake."""
    children: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(position, value, value) for position, value in enumerate(node.value)]
    for part, marked, value in children:
        line = marked.start_mark.line + 1
        here = (*place, part)
        if here in lines:
            problems.add(line, f"{_spell(here)}: this key stands twice, first in line {lines[here]}; keep one")
        lines[here] = line
        _index(value, here, lines, problems)


def _name_clashes(values: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Positions of methods whose name is taken by an earlier one."""
    entries = values.get("methods")
    seen: dict[str, int] = {}
    for position, entry in enumerate(entries if isinstance(entries, list) else []):
        kind, options = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
        name = str(options.get("name", kind) if isinstance(options, dict) else kind)
        if name in seen:
            yield position, f"methods[{seen[name]}] is called {name!r} too; give one of them another `name`"
        seen.setdefault(name, position)


def _messages(errors: list[ErrorDetails], lines: Mapping[Place, int]) -> Iterator[tuple[Place, str]]:
    """One message for each mistake; what the branches of a union say of the same value is joined."""
    grouped: dict[tuple[Place, Any], list[ErrorDetails]] = {}
    for error in errors:
        place = error["loc"]
        while place not in lines:
            place = place[:-1]
        grouped.setdefault((place, error["loc"] if error["type"] == "missing" else None), []).append(error)
    for (place, _), group in grouped.items():
        said = " or ".join(dict.fromkeys(_say(error, place) for error in group))
        value = group[0]["input"]
        silent = isinstance(value, dict) or group[0]["type"] in ("extra_forbidden", "value_error")
        yield place, said if silent else f"{said}; found {value!r}"


def _say(error: ErrorDetails, place: Place) -> str:
    """What is wrong, and what would be right."""
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {allowed(place[-1], _options(place[:-1]))}"
        case "missing":
            return f"the key {error['loc'][-1]!r} is missing"
        case "union_tag_invalid":
            return f"unknown name; {allowed(error['ctx']['tag'], _options(place))}"
        case "union_tag_not_found":
            names = ", ".join(sorted(_options(place)))
            return f"write one name, alone or with its options (`name` or `name: {{option: value}}`); names: {names}"
        case "value_error":
            return str(error["ctx"]["error"])
    message = error["msg"]
    return message[0].lower() + message[1:]


def _options(place: Place) -> Mapping[str, Any]:
    """What may stand at a place: the fields of a model there, or the names of a choice."""
    here: Any = Experiment
    for part in filter(lambda part: isinstance(part, str), place):
        if isinstance(here, Mapping):
            here = here[part]
        else:
            here = _inside(here.model_fields[part].annotation, here.model_fields[part].metadata)
    return here if isinstance(here, Mapping) else here.model_fields


def _inside(annotation: Any, metadata: Any) -> Any:
    """The model, or the options of the choice, that a field (or an entry of the list in it) holds."""
    for mark in metadata:
        if isinstance(mark, Choice):
            return mark.options()
    if getattr(annotation, "__origin__", None) is list:
        item = get_args(annotation)[0]
        return _inside(item, getattr(item, "__metadata__", ()))
    return annotation


def _spell(place: Place) -> str:
    """A place as people write it: `methods[1].lora.r`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")

"""From the entries of `methods:` to runs: a run for each combination of a grid and each seed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from trimtab.lab.methods import Method


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train and to measure."""

    title: str
    """Names its folder."""
    group: str
    """The title without the seed: runs of one group differ by their seed alone."""
    method: Method
    """With the values of the grid, and the seed, in their places."""
    options: dict[str, Any] = field(default_factory=dict)
    """The values of the grid."""


def runs(method: Method) -> list[Run]:
    """The runs of one entry; those of a group stand together, by seed.

    Raises:
        ValueError: a key of the grid is no option, or a value is not allowed there; says all of it.
    """
    found, wrong = [], []
    for options in _combinations(method.grid):
        group = method.title + "".join(f"-{key.rpartition('.')[2]}{_word(value)}" for key, value in options.items())
        seeds: list[int | None] = [*method.seeds] or [None]
        for seed in seeds:
            values = options if seed is None else options | {"train.seed": seed}
            title = group if seed is None else f"{group}-seed{seed}"
            try:
                found.append(Run(title=title, group=group, method=_changed(method, values, title), options=options))
            except ValueError as error:
                wrong.append(f"grid {options}: {error}")
    if wrong:
        raise ValueError("; ".join(dict.fromkeys(wrong)))
    return found


def trial(run: Run, rate: float, factor: float) -> Run:
    """A run that tries a learning rate, and is measured on the validation part only."""
    title = f"trials/{run.group}-x{factor:g}"
    return Run(title=title, group=run.group, method=with_rate(run.method, rate), options={"factor": factor})


def with_rate(method: Method, rate: float) -> Method:
    """The method at a learning rate, so that nothing is left to tune."""
    train = method.train.model_dump(exclude_unset=True) | {"learning_rate": rate, "tune": []}
    return _changed(method, {"train": train}, method.title)


def _combinations(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _changed(method: Method, values: dict[str, Any], title: str) -> Method:
    """The method with other options, checked anew; `train.seed` reaches into `train`."""
    given = method.model_dump(exclude_unset=True, exclude={"grid", "seeds", "name"})
    for key, value in values.items():
        place = given
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    name = {} if title == method.kind else {"name": title.replace("/", "-")}
    return type(method).model_validate(given | name)


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)

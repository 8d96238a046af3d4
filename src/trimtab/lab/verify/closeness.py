"""How near two results are: number by number, tensor by tensor, answer by answer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from trimtab.lab.files import read_json, read_lines

MEASURED_ANEW = {
    "seconds", "tokens_per_second", "peak_memory", "energy_joules", "bytes_on_disk", "environment", "files"
}  # fmt: skip
"""What no two runs share: clocks and meters, and what is compared apart."""


class Verdict(IntEnum):
    """How near two results are; of several, the largest one counts."""

    BIT_EQUAL = 0
    WITHIN_TOLERANCE = 1
    DIFFERENT = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " " if self is Verdict.WITHIN_TOLERANCE else "-")


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    """`metrics`, `tensors` or `answers`."""
    name: str
    verdict: Verdict
    gap: float | None = None
    """Of numbers, relative to the larger one, or to 1; of tensors, |a - b| / |a|; None where there is no number."""
    said: str = ""
    """Both values, where they can be shown, or what is wrong."""

    def as_json(self) -> dict[str, Any]:
        """For `verify.json`."""
        return vars(self) | {"verdict": str(self.verdict)}


def worst(rows: Iterable[Row]) -> Verdict:
    """The verdict over several comparisons."""
    return max((row.verdict for row in rows), default=Verdict.BIT_EQUAL)


def metrics(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> Iterator[Row]:
    """Compare everything in two `metrics.json` but clocks and meters."""
    one, two = (flat({k: v for k, v in values.items() if k not in MEASURED_ANEW}) for values in (first, second))
    for name in one | two:
        a, b = one.get(name), two.get(name)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
        if a == b or (numbers and a != a and b != b):
            yield Row("metrics", name, Verdict.BIT_EQUAL, 0.0 if numbers else None, f"{a}")
        elif numbers:
            gap = abs(a - b) / max(1.0, abs(a), abs(b))  # type: ignore[operator, arg-type]
            yield Row("metrics", name, _judge(gap, tolerance), gap, f"{a} / {b}")
        else:
            yield Row("metrics", name, Verdict.DIFFERENT, None, f"{a} / {b}")


def tensors(first: Path, second: Path, tolerance: float) -> Iterator[Row]:
    """Compare the tensors of two files one by one, so that two of them are in memory at a time."""
    import torch
    from safetensors import safe_open

    with safe_open(first, "pt") as one, safe_open(second, "pt") as two:
        names = [set(file.keys()) for file in (one, two)]
        for name in sorted(names[0] | names[1]):
            if missing := [label for label, held in zip(("first", "second"), names, strict=True) if name not in held]:
                yield Row("tensors", name, Verdict.DIFFERENT, None, f"missing in the {missing[0]} run")
                continue
            a, b = one.get_tensor(name), two.get_tensor(name)
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                found = f"{a.dtype} {list(a.shape)} / {b.dtype} {list(b.shape)}"
                yield Row("tensors", name, Verdict.DIFFERENT, None, found)
            elif torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
                yield Row("tensors", name, Verdict.BIT_EQUAL, 0.0)
            else:
                x, y = a.double(), b.double()
                gap = float((x - y).norm() / x.norm().clamp(min=1e-12))
                largest = float((x - y).abs().max())
                yield Row("tensors", name, _judge(gap, tolerance), gap, f"largest difference {largest:.3g}")


def answers(first: Path, second: Path) -> Iterator[Row]:
    """Compare two files of predictions: how many examples are answered the same."""
    one, two = read_lines(first), read_lines(second)
    same = sum(a.get("predicted") == b.get("predicted") for a, b in zip(one, two, strict=False))
    said = f"{same} of {max(len(one), len(two))} examples are answered the same"
    if one == two:
        yield Row("answers", "predictions", Verdict.BIT_EQUAL, 0.0, said)
    else:
        verdict = Verdict.WITHIN_TOLERANCE if same == len(one) == len(two) else Verdict.DIFFERENT
        yield Row("answers", "predictions", verdict, 1 - same / max(len(one), len(two)), said)


def compare(first: Path, second: Path, tolerance: float) -> list[Row]:
    """Compare the folders of two finished runs."""
    one, two = (read_json(folder / "metrics.json") for folder in (first, second))
    rows = list(metrics(one, two, tolerance))
    files = [{path.name for path in folder.glob("*.safetensors")} for folder in (first, second)]
    for name in sorted(files[0] ^ files[1]):
        rows.append(Row("tensors", name, Verdict.DIFFERENT, None, "this file is there in one of the runs only"))
    for name in sorted(files[0] & files[1]):
        rows += tensors(first / name, second / name, tolerance)
    if all((folder / "predictions.jsonl").exists() for folder in (first, second)):
        rows += answers(first / "predictions.jsonl", second / "predictions.jsonl")
    return rows


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested values as `test.accuracy.value` -> number; lists are taken apart too."""
    if isinstance(value, list):
        value = {str(number): inner for number, inner in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {place: value}
    pairs = (flat(inner, f"{place}.{key}" if place else str(key)) for key, inner in value.items())
    return {key: inner for pair in pairs for key, inner in pair.items()}


def _judge(gap: float, tolerance: float) -> Verdict:
    return Verdict.WITHIN_TOLERANCE if gap <= tolerance else Verdict.DIFFERENT

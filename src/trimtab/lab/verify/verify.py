"""Verifies a run: makes it again, compares, and looks for what has changed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.lab import assets
from trimtab.lab.data import Prepared, load_parts
from trimtab.lab.errors import RunError
from trimtab.lab.files import read_json, write_json
from trimtab.lab.folders import MethodFolder, RunFolder
from trimtab.lab.measure import environment
from trimtab.lab.origin import model_hashes
from trimtab.lab.verify import causes
from trimtab.lab.verify.again import again, beside, examples, settings_of
from trimtab.lab.verify.causes import Cause
from trimtab.lab.verify.closeness import Row, Verdict, compare, worst
from trimtab.lab.verify.report import show

TOLERANCE = 1e-3
"""How far a number may be off, relative to the larger one or to 1, and a tensor relative to its norm."""


def verify(place: Path, console: Console, *, tolerance: float = TOLERANCE, keep: bool = False) -> int:
    """Run an experiment, or one of its runs, again; print and write what became of it.

    Args:
        place: `runs/<name>` or `runs/<name>/<title>`; `verify.json` is written there.
        console: where progress and the verdict go.
        tolerance: see `TOLERANCE`.
        keep: leave the second run's folder.

    Returns:
        0 if the second result is bit-equal or within the tolerance, 1 if it is different.

    Raises:
        RunError: there is no finished run, or it cannot be run again.
    """
    run, titles = find(place)
    manifest = read_json(run.manifest)
    firsts = {title: run.method(title) for title in titles}
    task = settings_of(manifest, firsts[titles[0]], manifest["data"]["hash"]).task
    prepared, excuse = examples(run, manifest, task)
    settings = {title: settings_of(manifest, first, prepared.hash) for title, first in firsts.items()}
    if excuse:
        console.print(f"{excuse}; the examples kept in {run.data} are used", markup=False, soft_wrap=True)
    with beside(run, keep) as second:
        failed = again(run, second, settings, prepared, console)
        rows = {
            title: [Row("run", title, Verdict.DIFFERENT, None, f"failed: {failed[title]}")]
            if title in failed
            else compare(first.path, second.method(title).path, tolerance)
            for title, first in firsts.items()
        }
        found = _causes(run, manifest, firsts, prepared, second)
    overall = worst(row for each in rows.values() for row in each)
    if overall is not Verdict.BIT_EQUAL and not found:
        found = [causes.of_nothing(_environment(manifest, firsts))]
    write_json(place / "verify.json", _report(overall, tolerance, rows, found))
    show(console, overall, tolerance, rows, found)
    return int(overall is Verdict.DIFFERENT)


def find(place: Path) -> tuple[RunFolder, list[str]]:
    """The run that a folder belongs to, and the titles of its finished runs (trials left out), or the one asked for."""
    if (place / "manifest.json").exists():
        titles = sorted(folder.name for folder in place.glob("*/") if MethodFolder(folder).finished)
        if not titles:
            raise RunError(f"nothing in {place} is finished, so there is nothing to verify; run the experiment first")
        return RunFolder(place), titles
    MethodFolder(place).require_finished()
    if not (place.parent / "manifest.json").exists():
        raise RunError(f"{place.parent / 'manifest.json'} is missing, which tells how {place} was made")
    return RunFolder(place.parent), [place.name]


def _causes(
    run: RunFolder, manifest: dict[str, Any], firsts: dict[str, MethodFolder], prepared: Prepared, second: RunFolder
) -> list[Cause]:
    """Everything that is not as it was when the runs were made, each thing once."""
    model, kept = manifest["experiment"]["model"], Prepared(parts=load_parts(run.data))
    found = [*causes.of_data(run, manifest["data"]["hash"], prepared, kept)]
    if "model" in manifest:
        hashes = model_hashes(assets.resolve(model["source"]), model["revision"])
        found += causes.of_model(manifest["model"], hashes)
    found += causes.of_environment(manifest["environment"], environment())
    for title, first in firsts.items():
        found += causes.of_settings(manifest, first)
        found += causes.of_result(first)
        if second.method(title).finished:  # of the processes that trained
            before, now = (read_json(one.path / "metrics.json") for one in (first, second.method(title)))
            found += causes.of_environment(before["environment"], now["environment"])
    return list(dict.fromkeys(found))


def _environment(manifest: dict[str, Any], firsts: dict[str, MethodFolder]) -> dict[str, Any]:
    first = next(iter(firsts.values()))
    return dict(manifest["environment"] | read_json(first.path / "metrics.json")["environment"])


def _report(overall: Verdict, tolerance: float, rows: dict[str, list[Row]], found: list[Cause]) -> dict[str, Any]:
    return {
        "verdict": str(overall),
        "tolerance": tolerance,
        "verified": datetime.now(UTC).isoformat(timespec="seconds"),
        "causes": [vars(cause) for cause in found],
        "runs": {
            title: {"verdict": str(worst(each)), "compared": [row.as_json() for row in each]}
            for title, each in rows.items()
        },
        "environment": environment(),
    }

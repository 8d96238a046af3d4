"""Runs an experiment: checks it, prepares the data, trains each method in a process of its own, reports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.lab import assets
from trimtab.lab.check import load_experiment
from trimtab.lab.config import Experiment, Settings
from trimtab.lab.data import prepare
from trimtab.lab.errors import RunError
from trimtab.lab.files import write_json, write_text
from trimtab.lab.folders import RunFolder
from trimtab.lab.manifest import manifest
from trimtab.lab.picture import draw
from trimtab.lab.progress import RunProgress
from trimtab.lab.report import collect, data_summary, results_table

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run(file: Path, out: Path, console: Console) -> int:
    """Run the experiment of a file, or what is missing of it, into `out/<name>`; returns the exit status.

    Raises:
        LabError: the experiment or its data is at fault, or the folder holds results of other settings.
    """
    experiment = load_experiment(file)
    folder = RunFolder(out / experiment.name)
    with console.status("fetching the model and the data"):
        assets.resolve(experiment.model.source)
        prepared = prepare(experiment.data, experiment.task)
    settings = {method.title: experiment.settings(method, prepared.hash) for method in experiment.methods}
    refuse_changes(folder, settings)
    console.print(data_summary(prepared.facts(experiment.task)))
    prepared.save(folder.data)
    write_text(folder.path / "experiment.yaml", file.read_text(encoding="utf-8"))
    write_json(folder.manifest, manifest(experiment, file, prepared.facts(experiment.task), settings))
    try:
        failed = _train_all(folder, settings, console)
    except KeyboardInterrupt:
        done = [title for title in settings if folder.method(title).finished]
        console.print(f"\nInterrupted. Finished and kept: {', '.join(done) or 'nothing yet'}.")
        console.print(f"Go on, from the last checkpoint, with the same command: {_command(file, out)}", soft_wrap=True)
        return INTERRUPTED
    _report(folder, experiment, console)
    return 1 if failed else 0


def refuse_changes(folder: RunFolder, settings: dict[str, Settings]) -> None:
    """Raise RunError if a method's folder was made with other settings than it would be made with now."""
    complaints = []
    for title, wanted in settings.items():
        method = folder.method(title)
        saved = method.saved_settings()
        now = _flat(json.loads(wanted.model_dump_json()))
        before = now if saved is None else _flat(saved)
        changes = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        listed = "; ".join(f"{key} was {before.get(key)!r}, is now {now.get(key)!r}" for key in changes)
        if changes:
            complaints.append(f"  {method.path if method.finished else method.partial}: {listed}")
    if complaints:
        raise RunError(
            "these results were made with other settings, and results of different settings are never mixed:\n"
            + "\n".join(complaints)
            + "\nGive the experiment another `name`, or delete these folders to train them again."
        )


def _train_all(folder: RunFolder, settings: dict[str, Settings], console: Console) -> list[str]:
    """Train what is not finished, one method after the other; the titles of those that failed."""
    failed = []
    with RunProgress(console, list(settings)) as progress:
        for title, wanted in settings.items():
            method = folder.method(title)
            if method.finished:
                progress.skip(title)
                continue
            write_json(method.partial / "settings.json", json.loads(wanted.model_dump_json()))
            progress.start(title)
            error = _train(folder, title, progress)
            progress.done(title, "failed" if error else "finished")
            if error:
                failed.append(title)
                log = method.partial / "log.txt"
                console.print(f"{title} failed: {error}\n  its log: {log}", style="red", markup=False, soft_wrap=True)
    return failed


def _train(folder: RunFolder, title: str, progress: RunProgress) -> str | None:
    """Train one method in a process of its own; what went wrong, or None.

    The process has its own session, so that Ctrl-C reaches this one only, which then ends the other in order.
    """
    log = folder.method(title).partial / "log.txt"
    command = [sys.executable, "-P", "-m", "trimtab.lab.train", str(folder.path), title]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    message = None
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )
        try:
            assert process.stdout is not None
            for event in map(json.loads, process.stdout):
                match event["kind"]:
                    case "step":
                        progress.step(title, event["step"], event["steps"])
                    case "test":
                        progress.note(title, "is measured on the test part")
                    case "failed":
                        message = event["message"]
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    return message or (f"its process ended with status {status}" if status else None)


def _report(folder: RunFolder, experiment: Experiment, console: Console) -> None:
    """Collect the finished methods into results.json, a picture and a table."""
    results = collect(folder, [method.title for method in experiment.methods])
    write_json(folder.results, results)
    if results:
        console.print(results_table(results, experiment.task.metrics, experiment.evaluate.confidence))
        draw(results, experiment.task.metrics, experiment.name, folder.path / "quality")
    console.print(f"Everything is in {folder.path}", soft_wrap=True, highlight=False)


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested settings as `train.epochs` -> value."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    pairs = (_flat(inner, f"{place}.{key}" if place else key) for key, inner in value.items())
    return {key: inner for pair in pairs for key, inner in pair.items()}


def _command(file: Path, out: Path) -> str:
    return f"trimtab run {file}" + ("" if out == Path("runs") else f" --out {out}")

"""Runs an experiment: checks it, prepares the data, trains each method in a process of its own, reports."""

from pathlib import Path

from rich.console import Console

from trimtab.lab import assets
from trimtab.lab.check import load_experiment
from trimtab.lab.config import Experiment
from trimtab.lab.data import prepare
from trimtab.lab.files import write_json, write_text
from trimtab.lab.folders import RunFolder
from trimtab.lab.manifest import manifest
from trimtab.lab.picture import draw
from trimtab.lab.report import collect, data_summary, results_table
from trimtab.lab.sweep import Sweep, refuse_changes

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
    sweep = Sweep(experiment, folder, prepared.hash)
    refuse_changes(folder, sweep.known())
    console.print(data_summary(prepared.facts(experiment.task)))
    prepared.save(folder.data)
    write_text(folder.path / "experiment.yaml", file.read_text(encoding="utf-8"))
    write_json(folder.manifest, manifest(experiment, file, prepared.facts(experiment.task), sweep.known()))
    try:
        failed = sweep.train(console)
    except KeyboardInterrupt:
        done = [run.title for run in experiment.runs if folder.method(run.title).finished]
        console.print(f"\nInterrupted. Finished and kept: {', '.join(done) or 'nothing yet'}.")
        console.print(f"Go on, from the last checkpoint, with the same command: {_command(file, out)}", soft_wrap=True)
        return INTERRUPTED
    _report(folder, experiment, console)
    return 1 if failed else 0


def _report(folder: RunFolder, experiment: Experiment, console: Console) -> None:
    """Collect the finished methods into results.json, a picture and a table."""
    results = collect(folder, [run.title for run in experiment.runs])
    write_json(folder.results, results)
    if results:
        metrics = experiment.task.metrics
        console.print(results_table(results, metrics, experiment.evaluate.confidence))
        draw(results, metrics[0], experiment.name, folder.path / "quality")
    console.print(f"Everything is in {folder.path}", soft_wrap=True, highlight=False)


def _command(file: Path, out: Path) -> str:
    return f"trimtab run {file}" + ("" if out == Path("runs") else f" --out {out}")

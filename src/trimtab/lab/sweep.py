"""Trains the runs of an experiment one after the other, each in a process of its own, at a chosen learning rate."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from trimtab.lab.config import Experiment, Settings
from trimtab.lab.errors import RunError
from trimtab.lab.files import read_json, write_json
from trimtab.lab.folders import MethodFolder, RunFolder
from trimtab.lab.plan import Run, trial, with_rate
from trimtab.lab.progress import RunProgress


class Sweep:
    """All runs of one experiment.

    Args:
        experiment: as checked.
        folder: where its results go.
        data_hash: fingerprint of the examples as divided.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, data_hash: str) -> None:
        self.experiment, self.folder, self.data_hash = experiment, folder, data_hash

    def settings(self, run: Run, is_trial: bool = False) -> Settings:
        """Everything that decides a run's result."""
        return self.experiment.settings(run.method, self.data_hash, is_trial)

    def trials(self, run: Run) -> dict[float, Run]:
        """The trials of a run's group by their learning rate; none where the rate is not to be tuned."""
        train = self.settings(run).train
        assert train.learning_rate is not None
        rates = {factor: train.learning_rate * factor for factor in train.tune if run.method.trains}
        return {rate: trial(run, rate, factor) for factor, rate in rates.items()}

    def known(self) -> dict[str, Settings]:
        """The settings of all trials and of the runs that wait for none, by their titles."""
        found: dict[str, Settings] = {}
        for run in self.experiment.runs:
            trials = self.trials(run)
            found |= {one.title: self.settings(one, True) for one in trials.values() if one.title not in found}
            if not trials:
                found[run.title] = self.settings(run)
        return found

    def train(self, console: Console) -> list[str]:
        """Train what is not finished; the titles of those that failed."""
        failed: list[str] = []
        rates: dict[str, float | None] = {}
        planned = self.experiment.runs
        titles = dict.fromkeys(title for run in planned for title in (*_titles(self.trials(run)), run.title))
        with RunProgress(console, list(titles)) as progress:
            for run in planned:
                trials = self.trials(run)
                if trials and run.group not in rates:
                    done = {rate: one for rate, one in trials.items() if self._finish(one, True, progress, failed)}
                    rates[run.group] = self._best(done) if done else None
                    if done:
                        console.print(f"{run.group}: learning rate {rates[run.group]:g}", markup=False, highlight=False)
                chosen = run
                if trials:
                    rate = rates[run.group]
                    if rate is None:
                        progress.done(run.title, "left out: every trial failed")
                        failed.append(run.title)
                        continue
                    chosen = Run(**vars(run) | {"method": with_rate(run.method, rate)})
                    refuse_changes(self.folder, {run.title: self.settings(chosen)})
                self._finish(chosen, False, progress, failed)
        return failed

    def _best(self, done: dict[float, Run]) -> float:
        """The learning rate whose trial was best on the validation part."""
        measured = {r: read_json(self.folder.method(one.title).path / "metrics.json") for r, one in done.items()}
        sign = 1 if self.experiment.task.higher_is_better else -1
        return max(measured, key=lambda rate: sign * measured[rate]["validation"]["best"])

    def _finish(self, run: Run, is_trial: bool, progress: RunProgress, failed: list[str]) -> bool:
        """Train a run unless it is finished; whether it is now."""
        method = self.folder.method(run.title)
        if method.finished:
            progress.skip(run.title)
            return True
        track = self.experiment.track
        project = track.project or self.experiment.name
        note(method, self.settings(run, is_trial), run.group, run.options, project, track.to)
        progress.start(run.title)
        error = train(self.folder, run.title, progress)
        progress.done(run.title, "failed" if error else "finished")
        if error:
            failed.append(run.title)
            log = method.partial / "log.txt"
            progress.console.print(
                f"{run.title} failed: {error}\n  its log: {log}", style="red", markup=False, soft_wrap=True
            )
        return not error


def note(
    method: MethodFolder,
    settings: Settings,
    group: str,
    options: dict[str, Any],
    project: str,
    track: Sequence[str] = (),
) -> None:
    """Write down what a run's process needs: what decides the result, and what it is called and tracked by."""
    write_json(method.partial / "settings.json", json.loads(settings.model_dump_json()))
    about = {"group": group, "options": options, "project": project, "track": list(track)}
    write_json(method.partial / "run.json", about)


def train(folder: RunFolder, title: str, progress: RunProgress) -> str | None:
    """Train one run in a process of its own; what went wrong, or None.

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
                        progress.note(title, "is measured")
                    case "failed":
                        message = event["message"]
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    return message or (f"its process ended with status {status}" if status else None)


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


def _titles(trials: dict[float, Run]) -> list[str]:
    return [one.title for one in trials.values()]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested settings as `train.epochs` -> value."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    pairs = (_flat(inner, f"{place}.{key}" if place else key) for key, inner in value.items())
    return {key: inner for pair in pairs for key, inner in pair.items()}

"""Examines every method of an experiment, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from trimtab.lab.config import Experiment
from trimtab.lab.data import Prepared
from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.files import write_json
from trimtab.lab.folders import RunFolder
from trimtab.lab.methods import Method
from trimtab.lab.plan import runs
from trimtab.lab.text import count, duration

PATIENCE = 120
"""Seconds after which a probe is given up."""
TOPICS = ("probe", "tokens", "parameters", "memory", "save and load", "learning rate", "duration")


def doctor(experiment: Experiment, prepared: Prepared, console: Console) -> list[Diagnosis]:
    """What is found of each entry of `methods:`; of several values or seeds, the first run stands for all.

    Args:
        experiment: as checked.
        prepared: its examples as divided.
        console: shows how far it is.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-doctor-") as place:
        folder = RunFolder(Path(place))
        prepared.save(folder.data)
        found = []
        for method in experiment.methods:
            first = runs(method)[0]
            settings = experiment.settings(first.method, prepared.hash)
            write_json(folder.method(method.title).partial / "settings.json", json.loads(settings.model_dump_json()))
            with console.status(f"looking at {method.title}"):
                diagnosis = probe(folder, method.title)
            _tell_total(diagnosis, method, len(settings.train.tune))
            diagnosis.findings.sort(key=lambda finding: TOPICS.index(finding.topic))
            found.append(diagnosis)
    return found


def probe(folder: RunFolder, title: str, patience: float = PATIENCE) -> Diagnosis:
    """The diagnosis of one run, whatever becomes of its process."""
    command = [sys.executable, "-P", "-m", "trimtab.lab.doctor.probe", str(folder.path), title]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=patience)
    except subprocess.TimeoutExpired:
        diagnosis = Diagnosis(title)
        advice = "the run itself may be very slow; try a smaller train.batch_size or max_length"
        diagnosis.add("warning", "probe", f"a few steps took more than {patience:g} seconds", advice)
        return diagnosis
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Diagnosis.from_json(json.loads(lines[-1]))
    diagnosis = Diagnosis(title)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    advice = "a process that is killed (status -9) mostly asked for more memory than there is"
    diagnosis.add("error", "probe", f"its process ended with status {done.returncode}: {last}", advice)
    return diagnosis


def _tell_total(diagnosis: Diagnosis, method: Method, trials: int) -> None:
    """Note the time of all runs of an entry."""
    planned = runs(method)
    number = len(planned) + trials * len({run.group for run in planned})
    if diagnosis.seconds is not None and number > 1:
        seconds = duration(diagnosis.seconds * number)
        diagnosis.add("info", "duration", f"about {seconds} for its {count(number, 'run')}, trials included")

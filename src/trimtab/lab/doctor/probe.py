"""Looks at one run, in a process of its own, so that a crash is a finding and not the end.

`python -m trimtab.lab.doctor.probe FOLDER TITLE` reads `FOLDER/TITLE.partial/settings.json` and `FOLDER/data`; its
standard output is the diagnosis as one line of JSON.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trimtab.audit import audit
from trimtab.lab.config import Settings
from trimtab.lab.data import load_parts
from trimtab.lab.doctor.findings import Diagnosis
from trimtab.lab.doctor.gauge import gauge
from trimtab.lab.doctor.memory import Plan, foresee
from trimtab.lab.doctor.pace import pace
from trimtab.lab.doctor.rates import look_at_rate
from trimtab.lab.doctor.reload import look_at_reload
from trimtab.lab.doctor.steps import Stepper
from trimtab.lab.doctor.tokens import length, look_at_tokens
from trimtab.lab.files import read_json
from trimtab.lab.folders import RunFolder
from trimtab.lab.models import build
from trimtab.lab.text import size

PROBE_TOKENS = 1024
"""Tokens of the probe on a CPU, where a full batch could take minutes; a GPU takes the full batch."""
PHASES = {"train": "training takes", "evaluate": "training and evaluating by turns take", "merge": "merging takes"}
TIGHT = 0.9
"""Share of the room from which on a plan is called tight."""


class Patient:
    """A run as training begins, with its batches on the device.

    Args:
        settings: of the run.
        parts: the examples as divided.
    """

    def __init__(self, settings: Settings, parts: dict[str, list[Any]]) -> None:
        self.settings, self.parts = settings, parts
        task = settings.task
        self.facts = task.facts(parts["train"])
        self.loaded = build(settings, self.facts)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loaded.model.to(self.device)
        if settings.train.checkpointing:
            self.loaded.model.gradient_checkpointing_enable()
        self.stepper = Stepper(settings.train, task.loss(parts["train"], self.facts))
        self.rows = {part: self.encode(part) for part in ("train", "validation", "test")}

    def encode(self, part: str) -> list[dict[str, Any]]:
        """The examples of a part as the model's inputs, the longest first."""
        rows = self.settings.task.encode(self.loaded.processor, self.parts[part], self.facts)
        return sorted(rows, key=length, reverse=True)

    def batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Encoded examples as one batch."""
        collated = self.settings.task.collator(self.loaded.processor)([dict(row) for row in rows])
        return {key: value.to(self.device) for key, value in collated.items()}

    def probe_size(self) -> int:
        """Examples of the probe."""
        whole = min(self.settings.train.batch_size, len(self.rows["train"]))
        if self.device.type == "cuda":
            return whole
        return max(1, min(whole, PROBE_TOKENS // length(self.rows["train"][0])))


def examine(diagnosis: Diagnosis, settings: Settings, parts: dict[str, list[Any]]) -> None:
    """Fill the diagnosis of a run; raises what the run would raise."""
    patient = Patient(settings, parts)
    look_at_tokens(diagnosis, settings.task, patient.loaded, parts["train"], patient.facts)
    if settings.method.trains and settings.train.learning_rate:
        look_at_rate(diagnosis, settings.method, settings.train.learning_rate)
    if not settings.method.trains or diagnosis.errors:
        return
    model, train = patient.loaded.model, settings.train.batch_size
    probe = patient.batch(patient.rows["train"][: patient.probe_size()])
    resting = gauge().now()
    found = audit(model, probe, patient.stepper.loss_of)
    diagnosis.findings += [finding for finding in found.findings if finding.topic == "parameters"]
    if diagnosis.errors:
        return
    largest = patient.batch(patient.rows["train"][:train]), patient.batch(patient.rows["validation"][: 2 * train])
    _look_at_memory(diagnosis, foresee(model, patient.stepper, *largest, probe, resting))
    pace(diagnosis, settings.train, patient.stepper, model, patient.rows, patient.batch)
    look_at_reload(diagnosis, settings, patient.facts, patient.loaded, probe)


def _look_at_memory(diagnosis: Diagnosis, plan: Plan) -> None:
    """Note whether each phase fits into the machine."""
    reading = gauge()
    room = reading.room()
    diagnosis.memory = asdict(plan) | {"room": room, "of": reading.name}
    advice = {
        "train": "a smaller train.batch_size with train.accumulate, train.checkpointing, or `quantize`",
        "evaluate": "smaller train.batch_size (evaluation takes twice as many examples at a time)",
        "merge": "merge on another machine; training is not concerned",
    }
    for phase, help_ in advice.items():
        needed = diagnosis.memory[phase]
        if needed is None:
            continue
        found = f"{PHASES[phase]} about {size(needed)} of {reading.name}, and there is room for {size(room)}"
        if needed > TIGHT * room:
            serious = needed > room and phase != "merge"
            diagnosis.add("error" if serious else "warning", "memory", found, help_)
        else:
            diagnosis.add("info", "memory", found)


def main(folder: str, title: str) -> None:
    """Examine one run and print its diagnosis."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run = RunFolder(Path(folder))
    diagnosis = Diagnosis(title)
    try:
        settings = Settings.model_validate(read_json(run.method(title).partial / "settings.json"))
        examine(diagnosis, settings, load_parts(run.data))
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        advice = "the run would end the same way; the message says what is at fault"
        diagnosis.add("error", "probe", f"{type(error).__name__}: {text}", advice)
    print(json.dumps(diagnosis.as_json()), file=stream, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

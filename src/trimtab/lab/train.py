"""Trains, measures and saves one method; runs in a process of its own, started by `run.py`.

`python -m trimtab.lab.train RUN_FOLDER METHOD` reads `METHOD.partial/settings.json` and leaves the folder `METHOD`. Its
standard output is one line of JSON for every event; whatever libraries print goes to standard error, the method's log.
"""

import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState

from trimtab.lab import assets
from trimtab.lab.config import Settings
from trimtab.lab.data import load_parts
from trimtab.lab.evaluate import intervals
from trimtab.lab.files import read_json, write_json, write_lines
from trimtab.lab.folders import MethodFolder, RunFolder, last_checkpoint
from trimtab.lab.measure import environment, peak_memory
from trimtab.lab.tasks.base import Example, Facts, Loaded


class Events(TrainerCallback):
    """Tells the parent process how far this one is."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def send(self, kind: str, **values: Any) -> None:
        """Send one event; raises BrokenPipeError once the parent is gone, which ends an orphan."""
        print(json.dumps({"kind": kind, **values}), file=self.stream, flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.send("step", step=state.global_step, steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.send("step", step=state.global_step, steps=state.max_steps)


class Meter(TrainerCallback, ExportableState):
    """Seconds and peak memory of training; checkpoints keep them, so an interruption does not make a method cheap."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_memory: dict[str, int | None] = {}
        self._since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self._since = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Seconds of training, and the largest memory in bytes, over all processes that worked on it."""
        now = peak_memory()
        memory = {kind: max(now[kind] or 0, self.peak_memory.get(kind) or 0) or None for kind in now}
        return {"seconds": self.seconds + time.perf_counter() - self._since, "peak_memory": memory}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": self.read()}


class LabTrainer(Trainer):
    """A Trainer whose checkpoints leave out frozen weights, and whose predictions keep the order of the examples."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value for name, value in state.items() if name not in frozen})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method to train, with all it needs."""

    folder: MethodFolder
    settings: Settings
    parts: dict[str, list[Example]]
    facts: Facts
    loaded: Loaded

    def encode(self, part: str) -> list[dict[str, Any]]:
        """The examples of a part as the model's inputs."""
        return self.settings.task.encode(self.loaded.processor, self.parts[part], self.facts)


def train(run: RunFolder, title: str, events: Events) -> None:
    """Train one method from its newest checkpoint or from the start, measure it on the test part, and save it."""
    folder = run.method(title)
    settings = Settings.model_validate(read_json(folder.partial / "settings.json"))
    parts = load_parts(run.data)
    facts = settings.task.facts(parts["train"])
    job = Job(folder=folder, settings=settings, parts=parts, facts=facts, loaded=build(settings, facts))
    trainer = _trainer(job)
    trainer.add_callback(events)
    trainer.add_callback(Meter)
    checkpoint = last_checkpoint(folder.partial)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    used = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Meter)).read()
    events.send("test")
    outputs, labels = _predict(trainer, job.encode("test"))
    _save(job, outputs, used | _measure(job, trainer, outputs, labels))


def build(settings: Settings, facts: Facts) -> Loaded:
    """The model as training begins; its new head depends on the seed alone, so it is the same for every method."""
    task, source = settings.task, assets.resolve(settings.model.source)
    set_seed(settings.train.seed)
    loaded = task.load(source, settings.model.revision, facts)
    set_seed(settings.train.seed)
    return settings.method.wrap(loaded, source, task.peft_type)


def _trainer(job: Job) -> Trainer:
    task, train_ = job.settings.task, job.settings.train
    validation = job.encode("validation")
    arguments = TrainingArguments(
        output_dir=str(job.folder.partial),
        num_train_epochs=train_.epochs,
        per_device_train_batch_size=train_.batch_size,
        per_device_eval_batch_size=2 * train_.batch_size,
        learning_rate=train_.learning_rate,
        warmup_steps=train_.warmup,
        weight_decay=train_.weight_decay,
        seed=train_.seed,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.select_by,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
    return LabTrainer(
        model=job.loaded.model,
        args=arguments,
        train_dataset=job.encode("train"),
        eval_dataset=[validation[position] for position in _by_length(validation)],
        data_collator=task.collator(job.loaded.processor),
        compute_loss_func=task.loss(job.parts["train"], job.facts),
        compute_metrics=lambda predicted: task.scores(predicted.predictions, predicted.label_ids),
        preprocess_logits_for_metrics=lambda outputs, _: outputs[0] if isinstance(outputs, tuple) else outputs,
    )


def _by_length(rows: list[dict[str, Any]]) -> list[int]:
    """The positions of encoded examples, short ones first: batches of equal length need little padding."""
    return sorted(range(len(rows)), key=lambda position: len(rows[position].get("input_ids", ())))


def _predict(trainer: Trainer, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs and the labels of encoded examples, in their order."""
    order = _by_length(rows)
    predicted = trainer.predict([rows[position] for position in order])
    back = np.argsort(order)
    return predicted.predictions[back], predicted.label_ids[back]


def _measure(job: Job, trainer: Trainer, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Quality on the test part, and size."""
    task, method = job.settings.task, job.settings.method
    sizes = {True: 0, False: 0}
    for parameter in job.loaded.model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return {
        "method": method.title,
        "kind": method.kind,
        "test": intervals(task.scores, outputs, labels, job.settings.evaluate),
        "validation": {"metric": task.select_by, "best": trainer.state.best_metric},
        "parameters": {"trainable": sizes[True], "total": sizes[True] + sizes[False]},
    }


def _save(job: Job, outputs: np.ndarray, metrics: dict[str, Any]) -> None:
    """Write the model and what was measured, then give the folder its final name."""
    partial = job.folder.partial
    job.loaded.model.save_pretrained(str(partial))
    job.loaded.processor.save_pretrained(str(partial))
    answers = job.settings.task.answers(outputs, job.facts)
    rows = (row | answer for row, answer in zip(job.parts["test"], answers, strict=True))
    write_lines(partial / "predictions.jsonl", rows)
    write_json(partial / "facts.json", job.facts)
    size = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
    write_json(partial / "metrics.json", metrics | {"bytes_on_disk": size, "environment": environment()})
    partial.rename(job.folder.path)
    for checkpoint in job.folder.path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def main(run: str, title: str) -> int:
    """Train one method; returns the exit status."""
    events = Events(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        train(RunFolder(Path(run)), title, events)
    except Exception as error:
        traceback.print_exc()
        events.send("failed", message=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

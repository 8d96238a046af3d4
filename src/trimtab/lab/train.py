"""Trains, measures and saves one method; runs in a process of its own, started by `run.py`.

`python -m trimtab.lab.train RUN_FOLDER METHOD` reads `METHOD.partial/settings.json` and leaves the folder `METHOD`. Its
standard output is one line of JSON for every event; whatever libraries print goes to standard error, the method's log.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from trimtab.lab.callbacks import Events, History, Meter
from trimtab.lab.config import Settings
from trimtab.lab.data import load_parts
from trimtab.lab.errors import DataError
from trimtab.lab.evaluate import intervals, scores
from trimtab.lab.files import read_json, write_json, write_lines
from trimtab.lab.folders import MethodFolder, RunFolder, last_checkpoint
from trimtab.lab.forgetting import general
from trimtab.lab.measure import environment
from trimtab.lab.metrics import Row
from trimtab.lab.models import build, untouched
from trimtab.lab.origin import file_hash
from trimtab.lab.tasks.base import Example, Facts, Loaded, carries_loss


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method to train, with all it needs."""

    folder: MethodFolder
    settings: Settings
    about: dict[str, Any]
    """The group, the values of the grid and the trackers."""
    parts: dict[str, list[Example]]
    facts: Facts
    loaded: Loaded

    def encode(self, part: str) -> list[dict[str, Any]]:
        """The examples of a part as the model's inputs."""
        return self.settings.task.encode(self.loaded.processor, self.parts[part], self.facts)


class LabTrainer(Trainer):
    """A Trainer whose checkpoints leave out frozen weights, and which measures what the task measures.

    Args:
        job: what is trained.
    """

    def __init__(self, job: Job, train_dataset: Sequence[dict[str, Any]], **options: Any) -> None:
        super().__init__(train_dataset=_learnable(job, train_dataset), **options)
        self.job = job

    def answer(self, part: str) -> list[Row]:
        """The examples of a part with the model's answers, in the number format of training."""
        job = self.job
        size = 2 * job.settings.train.batch_size
        task, model, processor = job.settings.task, self.model, job.loaded.processor
        with self.accelerator.autocast():
            rows = task.answer(model, processor, job.parts[part], job.facts, size)
            return task.show(model, processor, rows, job.facts, size) if part == "test" else rows

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Every metric of the validation part."""
        found = scores(self.job.settings.task.metrics, self.answer("validation"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value for name, value in state.items() if name not in frozen})


def train(run: RunFolder, title: str, events: Events) -> None:
    """Train one method from its newest checkpoint or from the start, measure it on the test part, and save it."""
    folder = run.method(title)
    settings = Settings.model_validate(read_json(folder.partial / "settings.json"))
    about = read_json(folder.partial / "run.json")
    parts = load_parts(run.data)
    facts = settings.task.facts(parts["train"])
    text = general(run, settings)
    before = text.before(untouched(settings, facts)) if text else []
    job = Job(folder=folder, settings=settings, about=about, parts=parts, facts=facts, loaded=build(settings, facts))
    trainer = _trainer(job)
    used = _fit(job, trainer, events)
    events.send("test")
    if settings.trial:
        _finish(job, used | _measure(job, trainer))
        return
    rows = trainer.answer("test")
    found = {"test": intervals(settings.task.metrics, rows, settings.evaluate)}
    if text:
        found["forgetting"] = text.forgetting(before, text.read(job.loaded))
    _save(job, rows)
    _finish(job, used | _measure(job, trainer) | found)


def _fit(job: Job, trainer: LabTrainer, events: Events) -> dict[str, Any]:
    """Train from the newest checkpoint or from the start; what it took."""
    meter = Meter(sum(len(row.get("input_ids", ())) for row in trainer.train_dataset))
    for callback in (events, meter, History(job.folder.partial / "history.jsonl")):
        trainer.add_callback(callback)
    if job.settings.train.patience:
        trainer.add_callback(EarlyStoppingCallback(job.settings.train.patience))
    if job.settings.method.trains:
        checkpoint = last_checkpoint(job.folder.partial)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        trainer.state.best_metric = trainer.evaluate()[f"eval_{job.settings.task.select_by}"]
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Meter)).read()


def _trainer(job: Job) -> LabTrainer:
    task, train_ = job.settings.task, job.settings.train
    arguments = TrainingArguments(
        output_dir=str(job.folder.partial),
        num_train_epochs=train_.epochs,
        max_steps=train_.max_steps or -1,
        per_device_train_batch_size=train_.batch_size,
        gradient_accumulation_steps=train_.accumulate,
        learning_rate=train_.learning_rate,
        lr_scheduler_type=train_.schedule,
        warmup_steps=train_.warmup,
        weight_decay=train_.weight_decay,
        max_grad_norm=train_.max_grad_norm,
        bf16=train_.precision == "bf16",
        fp16=train_.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused on a CPU, which has it
        gradient_checkpointing=train_.checkpointing,
        seed=train_.seed,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=0.01,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.select_by,
        greater_is_better=task.higher_is_better,
        restore_callback_states_from_checkpoint=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=job.about["track"] or "none",
        project=job.about["project"],
        run_name=job.folder.path.name,
        disable_tqdm=True,
    )
    return LabTrainer(
        job,
        model=job.loaded.model,
        args=arguments,
        train_dataset=job.encode("train"),
        eval_dataset=job.parts["validation"],
        data_collator=task.collator(job.loaded.processor),
        compute_loss_func=task.loss(job.parts["train"], job.facts),
    )


def _learnable(job: Job, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The encoded training examples without those in which no token carries loss; the facts say how many those are.

    Raises DataError if none is left.
    """
    silent = {place for place, row in enumerate(rows) if not carries_loss(row)}
    if not silent:
        return rows
    if len(silent) == len(rows):
        raise DataError(
            f"no token of the {len(rows):,} training examples carries loss; look at the columns under `task:`, and "
            "whether its `max_length` leaves room for the answers"
        )
    job.facts["without_loss"] = len(silent)
    return [row for place, row in enumerate(rows) if place not in silent]


def _measure(job: Job, trainer: Trainer) -> dict[str, Any]:
    """Which run this is, its score on the validation part, and its size."""
    task, method = job.settings.task, job.settings.method
    sizes = {True: 0, False: 0}
    for parameter in job.loaded.model.parameters():
        sizes[parameter.requires_grad and method.trains] += parameter.numel()
    return {
        "method": job.folder.path.name,
        "group": job.about["group"],
        "kind": method.kind,
        "seed": job.settings.train.seed,
        "options": job.about["options"],
        "learning_rate": job.settings.train.learning_rate,
        "validation": {"metric": task.select_by, "best": trainer.state.best_metric},
        "parameters": {"trainable": sizes[True], "total": sizes[True] + sizes[False]},
    }


def _save(job: Job, rows: list[Row]) -> None:
    """Write the model and its answers."""
    partial = job.folder.partial
    job.loaded.model.save_pretrained(str(partial))
    job.loaded.processor.save_pretrained(str(partial))
    write_lines(partial / "predictions.jsonl", rows)


def _finish(job: Job, metrics: dict[str, Any]) -> None:
    """Write what was measured, then give the folder its final name."""
    partial = job.folder.partial
    write_json(partial / "facts.json", job.facts)
    files = sorted(partial.glob("*.safetensors"))
    kept = {
        "bytes_on_disk": sum(file.stat().st_size for file in files),
        "files": {file.name: file_hash(file) for file in files},
        "environment": environment(),
    }
    write_json(partial / "metrics.json", metrics | kept)
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

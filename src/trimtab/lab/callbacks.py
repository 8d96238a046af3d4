"""What watches a training: events for the parent process, a meter of resources, and the curves."""

import json
import time
from pathlib import Path
from typing import IO, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trimtab.lab.files import read_lines, write_lines
from trimtab.lab.measure import energy, peak_memory


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
    """Seconds, peak memory and energy of training; checkpoints keep them, so an interruption does not make a run cheap.

    Args:
        tokens: in one epoch; 0 where the examples have none.
    """

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens
        self.epochs = 0.0
        self.seconds = 0.0
        self.energy_joules: float | None = 0.0
        self.peak_memory: dict[str, int | None] = {}
        self._began = False
        self._since, self._energy = time.perf_counter(), energy()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self._began = True
        self._since, self._energy = time.perf_counter(), energy()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self.epochs = state.epoch

    def read(self) -> dict[str, Any]:
        """Seconds of training, tokens a second, joules, and the largest memory in bytes, over all its processes."""
        now, joules = peak_memory(), energy()
        seconds = self.seconds + (time.perf_counter() - self._since if self._began else 0)
        known = None not in (joules, self._energy, self.energy_joules)
        return {
            "seconds": seconds,
            "tokens_per_second": self.tokens * self.epochs / seconds if self.tokens and seconds else None,
            "energy_joules": self.energy_joules + joules - self._energy if known else None,  # type: ignore[operator]
            "peak_memory": {kind: max(now[kind] or 0, self.peak_memory.get(kind) or 0) or None for kind in now},
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {key: value for key, value in self.read().items() if key != "tokens_per_second"}
        return {"args": {"tokens": self.tokens}, "attributes": kept | {"epochs": self.epochs}}


class History(TrainerCallback):
    """Writes what the Trainer logs, one line of JSON an event, as it comes.

    Args:
        path: the file; what it holds of steps after the checkpoint that training goes on from is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        kept = [row for row in self._read() if row["step"] <= state.global_step]
        self.began = time.time() - (kept[-1]["seconds"] if kept else 0)
        write_lines(self.path, kept)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Called by the Trainer."""
        row = {"step": state.global_step, "seconds": round(time.time() - self.began, 2), **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; a process that was killed may have left half a line."""
        try:
            return read_lines(self.path)
        except FileNotFoundError:
            return []
        except json.JSONDecodeError:
            whole = self.path.read_text(encoding="utf-8").splitlines()[:-1]
            return [json.loads(line) for line in whole]

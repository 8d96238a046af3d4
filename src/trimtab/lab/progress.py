"""How far a run is: live bars with the time left in a terminal, plain lines anywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trimtab.lab.text import duration

QUIET_SECONDS = 15.0
"""Between two plain lines about the same method."""


class RunProgress:
    """One bar a method; a context manager around the whole sweep."""

    def __init__(self, console: Console, titles: list[str]) -> None:
        self.console = console
        self.bars = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.ids = {title: self.bars.add_task(title, start=False, total=None, note="waits") for title in titles}
        self.began: dict[str, tuple[float, int]] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def skip(self, title: str) -> None:
        """A method was finished by an earlier command."""
        self.bars.update(self.ids[title], total=1, completed=1)
        self.note(title, "finished before")

    def start(self, title: str) -> None:
        """A method's process is starting."""
        self.bars.start_task(self.ids[title])
        self.note(title, "loads")

    def step(self, title: str, step: int, steps: int) -> None:
        """A method has done `step` of `steps` steps."""
        if title not in self.began:
            self.bars.reset(self.ids[title], total=steps, completed=step, note="trains")
        self.bars.update(self.ids[title], completed=step)
        now = time.monotonic()
        since, first = self.began.setdefault(title, (now, step))
        if now - self.said.get(title, since) >= QUIET_SECONDS:
            left = (now - since) / max(step - first, 1) * (steps - step)
            self._plain(f"{title}: step {step} of {steps}, about {duration(left)} left")
            self.said[title] = now
        self.said.setdefault(title, now)

    def note(self, title: str, note: str) -> None:
        """Say in a word or two what a method is doing, or how it ended."""
        self.bars.update(self.ids[title], note=note)
        self._plain(f"{title}: {note}")

    def done(self, title: str, note: str) -> None:
        """A method has ended."""
        self.note(title, note)
        self.bars.stop_task(self.ids[title])

    def _plain(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False)

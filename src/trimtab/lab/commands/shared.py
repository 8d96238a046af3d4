"""What the commands share: a console, and how an error is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


def wide_console() -> Console:
    """A console as wide as the terminal; wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


@contextmanager
def told() -> Iterator[None]:
    """Shows an error that the user can put right as its message alone, and ends with status 2."""
    from trimtab.errors import TrimtabError

    try:
        yield
    except TrimtabError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None

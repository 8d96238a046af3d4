"""`trimtab run`."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.lab.commands.shared import told, wide_console


def run(
    file: Annotated[Path, typer.Argument(help="The experiment file (YAML).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Results go to OUT/<name>, by the experiment's name.")] = Path("runs"),
) -> None:
    """Run an experiment: prepare the data, train every method, measure, compare.

    What is finished is kept: the same command goes on after an interruption, from the last checkpoint.

    Example: [bold]trimtab run recipes/quickstart.yaml[/bold]
    """
    console = wide_console()
    with told():
        from trimtab.lab.run import run as run_experiment

        raise typer.Exit(run_experiment(file, out, console))

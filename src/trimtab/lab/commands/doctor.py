"""`trimtab doctor`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.lab.commands.shared import told, wide_console


def doctor(
    file: Annotated[Path, typer.Argument(help="The experiment file (YAML).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at an experiment before its first step: tokens, gradients, memory, saving, learning rates, duration.

    Trains a few steps of every method in a process of its own, and keeps nothing. Ends with status 1 if a finding is an
    error: then a run would fail, or learn nothing.

    Example: [bold]trimtab doctor recipes/quickstart.yaml[/bold]
    """
    console = wide_console()
    with told():
        from rich.console import Console

        from trimtab.lab import assets
        from trimtab.lab.check import load_experiment
        from trimtab.lab.data import prepare
        from trimtab.lab.doctor import doctor as examine
        from trimtab.lab.doctor import show

        quiet = Console(stderr=True)
        experiment = load_experiment(file)
        with quiet.status("fetching the model and the data"):
            assets.resolve(experiment.model.source)
            prepared = prepare(experiment.data, experiment.task)
        diagnoses = examine(experiment, prepared, quiet)
    if as_json:
        typer.echo(json.dumps([each.as_json() for each in diagnoses], indent=2, ensure_ascii=False))
    else:
        show(diagnoses, console)
    raise typer.Exit(any(each.errors for each in diagnoses))

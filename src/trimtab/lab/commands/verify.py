"""`trimtab verify`."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.lab.commands.shared import told, wide_console


def verify(
    place: Annotated[
        Path, typer.Argument(help="An experiment, runs/NAME, or one of its runs, runs/NAME/TITLE.", show_default=False)
    ],
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="How far numbers may be off, relative to the larger one or 1; tensors to their norm."),
    ] = 1e-3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the second run, as NAME.second.")] = False,
    container: Annotated[
        bool, typer.Option("--container", help="Run it in a container with the versions that the manifest notes.")
    ] = False,
) -> None:
    """Prove a result: run it again, in fresh processes, and compare every metric and every tensor.

    Says bit-equal, within tolerance or different, with the likely cause: changed settings, data, model, code, versions,
    hardware, threads. Ends with status 1 if the result is different. Everything is in PLACE/verify.json.

    Example: [bold]trimtab verify runs/quickstart/lora[/bold]
    """
    console = wide_console()
    with told():
        if container:
            from trimtab.lab.verify.container import verify_within

            raise typer.Exit(verify_within(place, tolerance, console))
        from trimtab.lab.verify.verify import verify as verify_run

        raise typer.Exit(verify_run(place, console, tolerance=tolerance, keep=keep))

"""`trimtab schema`."""

import json

import typer


def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check them.

    Example: [bold]trimtab schema > experiment.schema.json[/bold]
    """
    from trimtab.lab.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))

"""The commands of `trimtab`. Anything heavy is imported by the command that needs it, so that help answers at once."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Fine-tune a model in several ways on your own data, and see what each way is worth.\n\n"
        "One file describes an experiment. Begin with the one that comes along:\n\n"
        "[bold]trimtab run recipes/quickstart.yaml[/bold]"
    ),
)


@app.callback()
def _main() -> None:
    """Leaves the subcommands their names."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The experiment file (YAML).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Results go to OUT/<name>, by the experiment's name.")] = Path("runs"),
) -> None:
    """Run an experiment: prepare the data, train every method, measure, compare.

    What is finished is kept: the same command goes on after an interruption, from the last checkpoint.

    Example: [bold]trimtab run recipes/quickstart.yaml[/bold]
    """
    console = _console()
    with _told():
        from trimtab.lab.run import run as run_experiment

        raise typer.Exit(run_experiment(file, out, console))


@app.command()
def predict(
    method: Annotated[Path, typer.Argument(help="The folder of a method: runs/<name>/<method>.", show_default=False)],
    texts: Annotated[list[str] | None, typer.Argument(help="What to answer.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one text a line, besides.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Use a finished method on new texts.

    Example: [bold]trimtab predict runs/quickstart/lora "Who wrote Faust ?"[/bold]
    """
    console = _console()
    with _told():
        from trimtab.lab.errors import LabError
        from trimtab.lab.predict import predict as predict_texts

        if file and not file.is_file():
            raise LabError(f"no such file: {file}")
        asked = (texts or []) + (file.read_text(encoding="utf-8").splitlines() if file else [])
        if not asked:
            raise LabError("nothing to answer: give texts after the folder, or a file of them with --file")
        answers = predict_texts(method, asked)
    if as_json:
        for answer in answers:
            typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    table = Table("text", "label", "probability")
    for answer in answers:
        share = answer["probabilities"][answer["predicted"]]
        table.add_row(escape(answer["text"]), escape(answer["predicted"]), f"{share:.3f}")
    console.print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check them.

    Example: [bold]trimtab schema > experiment.schema.json[/bold]
    """
    from trimtab.lab.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))


def _console() -> Console:
    """A console as wide as the terminal; wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


@contextmanager
def _told() -> Iterator[None]:
    """Shows an error that the user can put right as its message alone, and ends with status 2."""
    from trimtab.errors import TrimtabError

    try:
        yield
    except TrimtabError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None

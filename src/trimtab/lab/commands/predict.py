"""`trimtab predict`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trimtab.lab.commands.shared import told, wide_console


def predict(
    method: Annotated[Path, typer.Argument(help="The folder of a method: runs/<name>/<method>.", show_default=False)],
    texts: Annotated[list[str] | None, typer.Argument(help="What to answer.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one text a line, besides.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Use a finished method on new texts.

    Example: [bold]trimtab predict runs/quickstart/lora "Who wrote Faust ?"[/bold]
    """
    console = wide_console()
    with told():
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
    table = Table("text", "answer", *(["probability"] if "probabilities" in answers[0] else []))
    for text, answer in zip(asked, answers, strict=True):
        said = answer["predicted"]
        row = [text, " ".join(said) if isinstance(said, list) else said]
        if "probabilities" in answer:
            row.append(f"{answer['probabilities'][said]:.3f}")
        table.add_row(*map(escape, row))
    console.print(table)

"""`trimtab merge`."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.lab.commands.shared import told, wide_console


def merge(
    method: Annotated[Path, typer.Argument(help="The folder of a method: runs/NAME/TITLE.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A new folder for the merged model.", show_default=False)],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Largest logit gap, relative to the logits; 1e-3, more in half precision, if left out."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Test examples to compare both models on.")] = 32,
    by_shards: Annotated[
        bool | None,
        typer.Option("--by-shards/--in-memory", help="Keep the base on disk; if left out, where memory is too small."),
    ] = None,
) -> None:
    """Merge an adapter into its model, with a proof.

    The merged model is read back and shown real test examples: the largest and mean logit gap, the share of equal
    labels or next tokens, and, of a generator, equal greedy answers go to the terminal and to OUT/merge.json. Above the
    tolerance nothing is left in OUT. A quantised base is written in full precision.

    Example: [bold]trimtab merge runs/quickstart/lora merged[/bold]
    """
    console = wide_console()
    with told():
        from trimtab.lab.export.merge import merge as merge_method

        merge_method(method, out, console, tolerance=tolerance, examples=examples, by_shards=by_shards)

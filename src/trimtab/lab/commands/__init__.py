"""The commands of `trimtab`: a file here is one command, called like its function of the same name.

Anything heavy is imported by the function that needs it, so that help answers at once.
"""

from importlib import import_module

import typer

NAMES = ("doctor", "run", "verify", "predict", "merge", "export", "schema")
"""In the order of `trimtab --help`: that of a user's work."""

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


for _name in NAMES:
    app.command()(getattr(import_module(f"{__name__}.{_name}"), _name))

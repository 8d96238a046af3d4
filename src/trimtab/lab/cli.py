"""Where the `trimtab` command starts: it says what to install where the workbench's packages are missing."""

import sys
from importlib.util import find_spec

PACKAGES = ("typer", "rich", "pydantic", "yaml", "transformers", "datasets", "sklearn", "matplotlib")


def app() -> None:
    """Run the command line; end with status 2, naming the extra to install, where its packages are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"trimtab: the workbench needs {', '.join(missing)}, not installed here; pip install 'trimtab[lab]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from trimtab.lab.commands import app as commands

    commands()

"""The table of proof: a row a method on a kind of layer (or one of its options), a column a behaviour.

Rows stand in `rows/`, a file for each method; columns in `behaviours.py`. `test_table.py` makes a test of every cell.
`python -m tests.table` prints it: ok, BAD, or – with its reason below; `python -m tests.table dora "files"` only rows
and columns whose names hold one of these words.
"""

import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import torch
from tests.row import Row

FILES = {
    found.name: import_module(f"tests.rows.{found.name}")
    for found in iter_modules([str(Path(__file__).parent / "rows")])
}
ROWS: list[Row] = [row for file in FILES.values() for row in file.ROWS]
FIRST: dict[str, Row] = {row.kind: row for row in reversed(ROWS)}
"""For each method, the row that stands first: its plainest configuration."""


def main(*words: str) -> int:
    """Print the table, or the rows and columns that `words` pick. Returns the number of failures."""
    from tests.behaviours import COLUMNS

    torch.set_num_threads(1)  # the tensors are tiny
    rows = [r for r in ROWS if any(w.lower() in r.label.lower() for w in words)] or ROWS
    columns = [c for c in COLUMNS if c in words] or list(COLUMNS)
    notes: dict[str, None] = {}
    failures = 0
    print(f"{'':32}" + " ".join(f"{i + 1:>3}" for i in range(len(columns))))
    for row in rows:
        cells = []
        for column in columns:
            why = row.leaves_out(column)
            if why:
                cells.append("–")
                notes[f"– {column}: {why}"] = None
                continue
            try:
                with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
                    warnings.simplefilter("ignore")
                    COLUMNS[column](row, Path(folder))
                cells.append("ok")
            except Exception as error:
                failures += 1
                cells.append("BAD")
                notes[f"BAD {row.label}, {column}: {str(error).strip()[:300] or type(error).__name__}"] = None
        print(f"{row.label:32}" + " ".join(f"{c:>3}" for c in cells), flush=True)
    print("\n".join(f"{i + 1:>3} {c}" for i, c in enumerate(columns)), *notes, f"{failures} bad", sep="\n")
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))

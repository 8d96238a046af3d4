"""Shows in the terminal what a verification found."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.lab.text import count
from trimtab.lab.verify.causes import Cause
from trimtab.lab.verify.closeness import Row, Verdict, worst

COLOURS = {Verdict.BIT_EQUAL: "green", Verdict.WITHIN_TOLERANCE: "yellow", Verdict.DIFFERENT: "red"}
SHOWN = 20
"""Rows of one run that are listed; the file has all."""


def show(console: Console, overall: Verdict, tolerance: float, rows: dict[str, list[Row]], found: list[Cause]) -> None:
    """One row a run, what is not bit-equal in it, and the likely causes."""
    table = Table("run", "verdict", "metrics", "tensors", "answers", title="The second run against the first")
    for title, each in rows.items():
        kinds = [[row for row in each if row.what == what] for what in ("metrics", "tensors", "answers")]
        table.add_row(title, _coloured(worst(each)), *(_summary(kind) for kind in kinds))
    console.print(table)
    for title, each in rows.items():
        unequal = sorted((row for row in each if row.verdict), key=lambda row: -row.verdict)
        for row in unequal[:SHOWN]:
            gap = "" if row.gap is None else f", off by {row.gap:.2g}"
            console.print(Text(f"  {title}: {row.name}: {row.verdict}{gap} ({row.said})"), soft_wrap=True)
        if len(unequal) > SHOWN:
            console.print(f"  {title}: and {len(unequal) - SHOWN} more; verify.json lists them all")
    if found:
        console.print("Likely causes:" if overall else "Changed since, without effect on the result:")
        for cause in found:
            console.print(Text(f"  {cause.kind}: {cause.what}"), soft_wrap=True)
    console.print(Text.assemble("Verdict: ", _coloured(overall), f" (tolerance {tolerance:g})"))


def _summary(rows: list[Row]) -> str:
    if not rows:
        return "-"
    equal = sum(row.verdict is Verdict.BIT_EQUAL for row in rows)
    gaps = [row.gap for row in rows if row.gap]
    far = f", off by {max(gaps):.2g} at most" if gaps else ""
    return f"{equal} of {count(len(rows), 'value')} bit-equal{far}"


def _coloured(verdict: Verdict) -> Text:
    return Text(str(verdict), style=COLOURS[verdict])

"""The diagnoses as a person wants to read them in a terminal."""

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.audit import Finding
from trimtab.lab.doctor.findings import Diagnosis, Sample
from trimtab.lab.text import count, duration

MARKS = {"info": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}
CARRIES, SILENT = "bold green", "dim"


def show(diagnoses: list[Diagnosis], console: Console) -> None:
    """Print what was found: what holds for every method once, then each method's own."""
    whole = [each for each in diagnoses if all(finding.topic != "probe" for finding in each.findings)]
    common = (
        [finding for finding in whole[0].findings if all(finding in each.findings for each in whole)] if whole else []
    )
    if len(whole) > 1 and common:
        console.print(Text("every method", style="bold"))
        console.print(_table(common))
    else:
        common = []
    console.print(_sample(next((each.sample for each in diagnoses if each.sample.pieces), Sample())))
    for each in diagnoses:
        console.print(Text(each.title, style="bold"))
        console.print(_table([finding for finding in each.findings if finding not in common]))
    console.print(_verdict(diagnoses))


def _table(findings: list[Finding]) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        mark, style = MARKS[finding.level]
        said = Group(Text(finding.found), *([Text(f"→ {finding.advice}", style=style)] if finding.advice else []))
        table.add_row(Text(mark, style=style), Text(finding.topic), said)
    return Padding(table, (0, 0, 1, 2))


def _sample(sample: Sample) -> Padding:
    """An example; what carries loss stands out."""
    text = Text().append("a training example as the model reads it; loss on what is green\n", style="italic")
    for piece, carries in sample.pieces:
        text.append(piece, style=CARRIES if carries else SILENT)
    if sample.target:
        text.append("  → ", style=SILENT)
        text.append(sample.target, style=CARRIES)
    return Padding(text, (0, 0, 1, 2))


def _verdict(diagnoses: list[Diagnosis]) -> Text:
    levels = [finding.level for each in diagnoses for finding in each.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    known = [each.seconds for each in diagnoses if each.seconds is not None]
    text = Text(f"{count(errors, 'error')}, {count(warnings, 'warning')}", style="bold")
    if known:
        text.append(f"; about {duration(sum(known))} for one run of each method", style="not bold")
    return text

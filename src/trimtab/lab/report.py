"""What a run found, as a person wants to read it in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from trimtab.lab.files import read_json
from trimtab.lab.folders import RunFolder
from trimtab.lab.metrics import Metric
from trimtab.lab.text import count, duration, size

Result = dict[str, Any]

WIDTH = 2
"""Metrics that fit into a terminal with their intervals."""


def collect(run: RunFolder, titles: list[str]) -> list[Result]:
    """The metrics of every finished method, in the experiment's order."""
    return [read_json(run.method(title).path / "metrics.json") for title in titles if run.method(title).finished]


def data_summary(facts: dict[str, Any]) -> Text:
    """What became of the rows, in a few lines."""
    cleaning, examples = facts["cleaning"], facts["examples"]
    dropped = [f"{cleaning[kind]:,} {kind}" for kind in ("empty", "duplicates") if cleaning[kind]]
    lines = [f"Data: {count(cleaning['read'], 'row')}, dropped {' and '.join(dropped) or 'none'}"]
    if cleaning["conflicts"]:
        lines.append(
            f"{count(cleaning['conflicts'], 'input')} had several labels; the most frequent was kept, else the first"
        )
    if cleaning["crossings"]:
        lines.append(f"{count(cleaning['crossings'], 'input')} stood in several parts; kept for test, else validation")
    divided = ", ".join(f"{part} {number:,}" for part, number in examples.items())
    labels = f"; {count(len(facts['targets']['train']), 'label')}" if facts["targets"] else ""
    return Text("\n".join([*lines, f"Parts: {divided}{labels}"]))


def results_table(results: list[Result], metrics: Sequence[Metric], confidence: float) -> Table:
    """One row a method: size, quality with its interval (an arrow where less is better), and cost."""
    shown, rest = metrics[:WIDTH], [metric.heading for metric in metrics[WIDTH:]]
    caption = f"{', '.join(rest)}: in results.json" if rest else None
    table = Table(title=f"Test results, with {confidence:.0%} bootstrap intervals", caption=caption)
    table.add_column("method", no_wrap=True)
    headings = [metric.heading + ("" if metric.higher_is_better else " ↓") for metric in shown]
    for heading in ["trainable", "%", *headings, "time", "peak memory", "on disk"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        parameters, memory = result["parameters"], result["peak_memory"]
        table.add_row(
            result["method"],
            f"{parameters['trainable']:,}",
            f"{100 * parameters['trainable'] / parameters['total']:.2f}",
            *(_interval(result["test"][metric.name]) for metric in shown),
            duration(result["seconds"]),
            size(memory["gpu"] or memory["rss"]),
            size(result["bytes_on_disk"]),
        )
    return table


def _interval(score: dict[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"

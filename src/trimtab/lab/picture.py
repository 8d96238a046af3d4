"""The picture of quality against resources."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from trimtab.lab.files import replacing
from trimtab.lab.methods import Full
from trimtab.lab.metrics import Metric
from trimtab.lab.report import Result

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
MARKERS = "osD^vPX*"
"""One more than there are colours, so that a pair of both comes back only after 56 methods."""


def draw(results: list[Result], metric: Metric, name: str, path: Path) -> None:
    """Draw a metric against trained parameters, training time and peak memory, as `path`.png and `path`.svg."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), sharey=True, layout="constrained")
    resources = {
        "trained parameters (log scale)": [result["parameters"]["trainable"] for result in results],
        "training time, seconds": [result["seconds"] for result in results],
        "peak memory, MB": [_memory(result) / 1e6 for result in results],
    }
    baselines = [result["test"][metric.name] for result in results if result["kind"] == Full.kind]
    for axis, (label, costs) in zip(axes, resources.items(), strict=True):
        for baseline in baselines:
            axis.axhspan(baseline["low"], baseline["high"], color="#f0f0f0", zorder=0)
        for place, (result, cost) in enumerate(zip(results, costs, strict=True)):
            _point(axis, cost, result["test"][metric.name], place, result["method"])
        axis.set_xlabel(label)
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    _scale_parameters(axes[0], resources["trained parameters (log scale)"])
    for axis, costs in zip(axes[1:], list(resources.values())[1:], strict=True):
        axis.set_xlim(0, max(costs) * 1.12)
    axes[0].set_ylabel(f"test {metric.heading}")
    better = "up" if metric.higher_is_better else "down"
    figure.suptitle(f"{name}: quality against resources, {better} and left is better", fontsize=12, fontweight="bold")
    bars, labels = axes[0].get_legend_handles_labels()
    handles = [bar[0] for bar in bars]
    if baselines:
        handles.append(Patch(color="#f0f0f0"))
        labels.append("interval of full fine-tuning")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    for suffix in (".png", ".svg"):
        with replacing(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _point(axis: Axes, cost: float, score: dict[str, float], place: int, label: str) -> None:
    below, above = score["value"] - score["low"], score["high"] - score["value"]
    axis.errorbar(
        cost,
        score["value"],
        yerr=[[below], [above]],
        fmt=MARKERS[place % len(MARKERS)],
        color=COLOURS[place % len(COLOURS)],
        markersize=8,
        capsize=4,
        label=label,
    )


def _memory(result: Result) -> float:
    memory: dict[str, Any] = result["peak_memory"]
    return float(memory["gpu"] or memory["rss"])


def _scale_parameters(axis: Axes, counts: list[float]) -> None:
    counts = [count for count in counts if count] or [1]  # nothing is trained: no place on a log scale
    axis.set_xscale("log")
    axis.set_xlim(min(counts) / 3, max(counts) * 3)
    axis.xaxis.set_major_formatter(FuncFormatter(_short))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(count: float, _: int) -> str:
    """`76k`, `22.7M`."""
    for unit, power in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= power:
            return f"{count / power:g}{unit}"
    return f"{count:g}"

"""What all benchmarks share: where a result was measured, how a call is timed, and how results are shown and kept."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trimtab.lab.measure import seconds

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Device, versions and commit: what a number means nothing without."""

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "src"], cwd=root, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    name = commit.stdout.strip() or os.environ.get("COMMIT", "unknown")
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: of(name) for name in ("torch", "transformers", "peft", "safetensors")},
        "commit": name + ("+changes" if dirty.stdout.strip() else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """The processor's name, with the matrix extensions that decide the speed of half precision."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = sorted({f for f in fields.get("flags", "").split() if f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2")})
    return f"{fields.get('model name', 'unknown')} ({', '.join(flags)})"


def median_seconds(call: Callable[[], Any], repeats: int, warm: int = 1) -> float:
    """The median time of a call in seconds, after `warm` untimed ones; a GPU is waited for."""
    return statistics.median([seconds(call) for _ in range(warm + repeats)][warm:])


def keep(name: str, rows: dict[str, Any]) -> None:
    """Print the result and write it, with its environment, to `results/<name>.json`."""
    result = {"environment": environment(), "results": rows}
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)

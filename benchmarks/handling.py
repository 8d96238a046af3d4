"""What handling adapters costs: import, inject, load, switch, Python's share of a forward. Beside PyPI `peft`.

    python -m benchmarks.handling

The model is Llama-shaped, 24 layers of width 1024: 168 adapted modules.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from types import ModuleType
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab

from .common import keep, median_seconds

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPEATS = 7


def base_model() -> nn.Module:
    """A Llama-shaped base with zero weights: values do not matter here, and zeros are quick to make."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    return model


def seconds(call: Any) -> float:
    """The time of one call."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    call()
    gc.enable()
    return time.perf_counter() - start


def handle(library: ModuleType) -> dict[str, float]:
    """Median seconds of putting an adapter in, loading one more, and switching."""
    times: dict[str, list[float]] = {"inject_s": [], "load_s": [], "switch_s": []}
    for _ in range(REPEATS):
        base, made = base_model(), []
        config = library.LoraConfig(r=16, target_modules=TARGETS, task_type="CAUSAL_LM")
        times["inject_s"].append(seconds(lambda: made.append(library.get_peft_model(base, config))))  # noqa: B023
        model = made[0]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            times["load_s"].append(seconds(lambda: model.load_adapter(folder, "second")))  # noqa: B023
        times["switch_s"].append(seconds(lambda: switch(model, 20)) / 20)  # noqa: B023
    return {key: statistics.median(values) for key, values in times.items()}


def switch(model: Any, times: int) -> None:
    """Switch between two adapters, back and forth."""
    for i in range(times):
        model.set_adapter("default" if i % 2 else "second")


def overhead(library: ModuleType) -> float:
    """Median seconds that an adapted layer adds to the three products it consists of, without gradients."""
    layer = nn.Sequential(nn.Linear(8, 8, bias=False))
    model = library.get_peft_model(layer, library.LoraConfig(r=2, target_modules=["0"])).eval()
    wrapped = model.base_model.model[0]
    x, w, a, b = torch.randn(1, 8), torch.randn(8, 8), torch.randn(2, 8), torch.randn(8, 2)

    def bare() -> None:
        for _ in range(2000):
            torch.addmm(x @ w.t(), x @ a.t(), b.t(), alpha=2.0)

    def adapted() -> None:
        for _ in range(2000):
            wrapped(x)

    with torch.no_grad():
        return (median_seconds(adapted, REPEATS) - median_seconds(bare, REPEATS)) / 2000


def import_seconds(name: str) -> float:
    """Seconds that importing a package costs once torch is imported, in a fresh interpreter; the median of five."""
    code = f"import time, torch; s = time.perf_counter(); import {name}; print(time.perf_counter() - s)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(6)]
    return statistics.median(float(run.stdout) for run in runs[1:])


def main() -> None:
    """Measure both libraries and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows: dict[str, Any] = {}
    for library in (peft, trimtab):
        rows[library.__name__] = handle(library) | {
            "layer_overhead_s": overhead(library),
            "import_s": import_seconds(library.__name__),
        }
    ours, theirs = rows["trimtab"], rows["peft"]
    rows["peft / trimtab"] = {key: round(theirs[key] / ours[key], 2) for key in ours}
    keep("handling", rows)


if __name__ == "__main__":
    main()

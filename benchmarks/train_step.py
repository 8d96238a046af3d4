"""One training step of a Llama-shaped model with LoRA on all linear layers, beside PyPI `peft` and full fine-tuning.

    python -m benchmarks.train_step                       # 24 layers of width 1024, batch 8 x 128: a CPU in minutes
    python -m benchmarks.train_step --preset 1b           # 16 layers of width 2048, batch 4 x 512: a GPU

All variants run in one process on the same inputs, one after another, in several rounds; the median step counts. The
floor is the time of the matrix products alone, at the rate measured in the same run. The loss after the timed steps
shows that the variants do the same work.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab

from .common import keep, median_seconds


@dataclass
class Preset:
    """The shape of a model and of its batch."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    batch: int
    length: int


PRESETS = {
    "small": Preset(24, 1024, 2816, 16, 16, 8000, 8, 128),
    "1b": Preset(16, 2048, 8192, 32, 8, 128256, 4, 512),
    "8b": Preset(32, 4096, 14336, 32, 8, 128256, 4, 2048),
}


def base_model(preset: Preset, dtype: torch.dtype, device: str) -> nn.Module:
    """The base model, with the same random weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.width,
        intermediate_size=preset.inner,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads,
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).train()
    finally:
        torch.set_default_dtype(torch.float32)


def lora(library: Any, model: nn.Module, **options: Any) -> nn.Module:
    """The model with LoRA, r = 16, on all its linear layers."""
    config = library.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return library.get_peft_model(model, config, **options)


def variants(preset: Preset, device: str) -> dict[str, Callable[[], nn.Module]]:
    """How to make the model of each row."""
    half, full = torch.bfloat16, torch.float32
    rows: dict[str, Callable[[], nn.Module]] = {
        "trimtab, bf16 base": lambda: lora(trimtab, base_model(preset, half, device)),
        "peft, bf16 base": lambda: lora(peft, base_model(preset, half, device)),
        "peft, bf16 base and adapters": lambda: lora(
            peft, base_model(preset, half, device), autocast_adapter_dtype=False
        ),
        "full fine-tuning, bf16": lambda: base_model(preset, half, device),
    }
    if device == "cpu":
        rows |= {
            "trimtab, fp32 base": lambda: lora(trimtab, base_model(preset, full, device)),
            "peft, fp32 base (its default)": lambda: lora(peft, base_model(preset, full, device)),
        }
    return rows


def measure(make: Callable[[], nn.Module], preset: Preset, device: str, repeats: int) -> dict[str, float]:
    """Median seconds a step, peak memory on a GPU, and the last loss."""
    model = make()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, preset.vocabulary, (preset.batch, preset.length), generator=generator).to(device)
    losses = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    row = {"step_s": median_seconds(step, repeats), "last_loss": float(losses[-1])}
    if device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def floor_seconds(preset: Preset, device: str) -> float:
    """Seconds of the matrix products of one step with a frozen base (forward and input gradients), in bf16."""
    dim = preset.width // preset.heads
    sizes = [
        (preset.width, preset.width), (preset.width, preset.kv_heads * dim), (preset.width, preset.kv_heads * dim),
        (preset.width, preset.width), (preset.width, preset.inner), (preset.width, preset.inner),
        (preset.inner, preset.width),
    ]  # fmt: skip
    rows, total = preset.batch * preset.length, 0.0
    for inp, out in sizes:
        x = torch.randn(rows, inp, dtype=torch.bfloat16, device=device)
        w = torch.randn(out, inp, dtype=torch.bfloat16, device=device)
        g = torch.randn(rows, out, dtype=torch.bfloat16, device=device)
        total += preset.layers * (median_seconds(lambda: x @ w.t(), 5) + median_seconds(lambda: g @ w, 5))  # noqa: B023
    return total


def main() -> None:
    """Measure all variants and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="the shape of model and batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps a variant")
    parser.add_argument("--rounds", type=int, default=3, help="how often the variants take turns")
    options = parser.parse_args()
    preset, device = PRESETS[options.preset], "cuda" if torch.cuda.is_available() else "cpu"
    every: dict[str, list[dict[str, float]]] = {name: [] for name in variants(preset, device)}
    for _ in range(options.rounds):
        for name, make in variants(preset, device).items():
            every[name].append(measure(make, preset, device, options.repeats))
            print(f"{name}: {every[name][-1]['step_s']:.3f} s", flush=True)
    rows: dict[str, Any] = {
        name: done[-1] | {"step_s": statistics.median(row["step_s"] for row in done)} for name, done in every.items()
    }
    ours = rows["trimtab, bf16 base"]["step_s"]
    rows["time over trimtab, bf16 base"] = {name: round(row["step_s"] / ours, 2) for name, row in rows.items()}
    keep(f"train_step_{options.preset}_{device}", rows | {"floor_s": floor_seconds(preset, device)})


if __name__ == "__main__":
    main()

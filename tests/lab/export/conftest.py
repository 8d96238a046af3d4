"""Finished methods without a training: a tiny generator and a tiny classifier, each with an adapter that does a lot."""

from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from trimtab.lab.config import Evaluate, Model, Settings
from trimtab.lab.export.finished import Finished
from trimtab.lab.files import write_json, write_lines
from trimtab.lab.methods import Train, all_methods
from trimtab.lab.tasks.base import Loaded
from trimtab.lab.tasks.text_classification import TextClassification

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
ASKED = [f"w{n} w{n + 1} w{n + 2} w{2 * n}" for n in range(12)]


class TinyChat:
    """As much of a task as a proof needs, for a generator."""

    kind = "tiny_chat"
    peft_type = "CAUSAL_LM"

    def load(self, source: str, revision: str | None, facts: Any) -> Loaded:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(source)
        return Loaded(model=model, processor=AutoTokenizer.from_pretrained(source), new_modules=[])

    def encode(self, processor: Any, examples: list[dict[str, Any]], facts: Any) -> list[dict[str, Any]]:
        ids = [processor(example["text"])["input_ids"] for example in examples]
        return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in ids]

    def collator(self, processor: Any) -> Any:
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(processor)


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory) -> Path:
    """A llama with grouped key heads and untied embeddings, in several shards, with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("generator")
    words = ["<pad>", "<unk>", "</s>", *(f"w{number}" for number in range(40))]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    set_seed(0)
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, eos_token_id=2, pad_token_id=0, **sizes)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def finish(tmp_path, monkeypatch, tiny_generator, tiny_model):
    """Makes a finished method: `finish("lora", {"r": 4}, task="chat")`; gives its folder."""
    made: dict[Path, Finished] = {}
    monkeypatch.setattr(Finished, "read", classmethod(lambda cls, folder: made[folder]))

    def make(kind: str, options: dict[str, Any], *, task: str = "chat") -> Path:
        chat = task == "chat"
        source = str(tiny_generator if chat else tiny_model)
        folder = tmp_path / "runs" / task / kind
        facts = {} if chat else {"labels": ["high", "low", "middle"]}
        settings = Settings.model_construct(
            model=Model.model_construct(source=source, revision=None, dtype="as_saved"),
            task=TinyChat() if chat else TextClassification(),
            data="hash",
            method=all_methods()[kind](**options),
            train=Train(),
            evaluate=Evaluate(),
            trial=False,
        )
        finished = made[folder] = Finished(folder=folder, settings=settings, facts=facts, source=source)
        torch.manual_seed(0)
        loaded = settings.method.wrap(finished.base(), source, settings.task.peft_type)
        draws = torch.Generator().manual_seed(0)
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:  # not much: what a training would do
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        for part in ("train", "validation", "test"):
            rows = [{"text": text, **({} if chat else {"label": "high"})} for text in ASKED]
            write_lines(folder.parent / "data" / f"{part}.jsonl", rows)
        write_json(folder / "metrics.json", {})
        return folder

    return make


@pytest.fixture(scope="session")
def peft_reads() -> Any:
    """The published reader of adapters."""
    assert trimtab.__version__
    return pytest.importorskip("peft")

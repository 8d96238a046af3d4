"""Tiny models of each kind, and whole runs of them in this process."""

import io
import json
import random

import pytest

from trimtab.lab.callbacks import Events
from trimtab.lab.train import train

from ..conftest import WORDS
from ..test_run import run_here

CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<unk>", "<user>", "<assistant>"]


def tokenizer_of(words, chat=None):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    made.chat_template = chat
    return made


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_of([*SPECIAL, *WORDS], CHAT)


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("llama")
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=45, eos_token_id=1, pad_token_id=0, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5(tmp_path_factory, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    folder = tmp_path_factory.mktemp("t5")
    set_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=45, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def whole_run(monkeypatch, tmp_path):
    """Runs an experiment on some rows; methods are trained in this process, which saves the start of theirs."""

    def train_here(folder, title, _):
        train(folder, title, Events(io.StringIO()))

    monkeypatch.setattr("trimtab.lab.sweep.train", train_here)
    return lambda *experiment, **more: whole(tmp_path, *experiment, **more)


def whole(folder, model, task, rows, methods, evaluate=""):
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    file = folder / "t.yaml"
    file.write_text(
        f"name: t\nmodel: {model}\ntask: {task}\ndata: rows.jsonl\nmethods: {methods}\n"
        f"train: {{epochs: 1, batch_size: 16, learning_rate: 1.0e-2}}\nevaluate: {{resamples: 1000{evaluate}}}\n"
    )
    status, said = run_here(file, folder / "runs")
    assert status == 0, said
    return folder / "runs" / "t"


def phrases(number, seed=0):
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=draws.randint(3, 9))) for _ in range(number)]

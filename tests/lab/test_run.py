"""Whole runs on a tiny model: fair, kept, resumed, refused, and usable afterwards."""

import io
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from trimtab.lab.commands import app
from trimtab.lab.config import Settings
from trimtab.lab.errors import RunError
from trimtab.lab.files import read_json, read_lines
from trimtab.lab.folders import last_checkpoint
from trimtab.lab.predict import predict
from trimtab.lab.run import run

from .conftest import start, write_experiment

SWEEP = """
- full
- lora: {r: 4, target_modules: [query, value]}
- lora: {name: broken, target_modules: [no_such_module]}
- prefix_tuning: {num_virtual_tokens: 3}
"""
LONG = "- lora: {r: 4, target_modules: [query, value]}"


def run_here(file: Path, out: Path) -> tuple[int, str]:
    """Run in this process; the exit status and what was printed."""
    said = io.StringIO()
    return run(file, out, Console(file=said, width=140)), said.getvalue()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny_model, tiny_data):
    """A finished run of four methods, one of which fails."""
    folder = tmp_path_factory.mktemp("sweep")
    train = "epochs: 2, batch_size: 16, learning_rate: 1.0e-2"
    file = write_experiment(folder / "sweep.yaml", tiny_model, tiny_data, SWEEP, train)
    status, said = run_here(file, folder / "runs")
    return file, folder / "runs" / "sweep", status, said


def test_one_failure_does_not_end_the_sweep(sweep):
    _, folder, status, said = sweep
    assert status == 1
    assert [result["method"] for result in read_json(folder / "results.json")] == ["full", "lora", "prefix_tuning"]
    assert "broken failed: " in said
    assert "no_such_module" in said
    assert str(folder / "broken.partial" / "log.txt") in said.replace("\n", "")


def test_the_table_and_the_results_say_the_same(sweep):
    _, folder, _, said = sweep
    for result in read_json(folder / "results.json"):
        score = result["test"]["accuracy"]
        (row,) = [line for line in said.splitlines() if line.startswith(f"│ {result['method']} ")]
        assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in row
        assert f"{result['parameters']['trainable']:,}" in row
        assert result["seconds"] > 0
        assert 100e6 < result["peak_memory"]["rss"] < 10e9


def test_the_table_is_readable(sweep):
    """Nothing in it is cut off, and what it does not show is named."""
    _, _, _, said = sweep
    table = said[said.index("Test results") :]
    assert "…" not in table
    assert "MCC, ECE: in results.json" in table


def test_sizes_are_those_of_the_method(sweep):
    _, folder, _, _ = sweep
    full, lora, prefix = read_json(folder / "results.json")
    head = 16 * 2 + 2
    assert full["parameters"]["trainable"] == full["parameters"]["total"]
    assert lora["parameters"]["trainable"] == 2 * 2 * (16 * 4 + 4 * 16) + head
    assert prefix["parameters"]["trainable"] == 3 * 2 * 2 * 16 + head
    assert lora["bytes_on_disk"] == (folder / "lora" / "adapter_model.safetensors").stat().st_size
    assert full["bytes_on_disk"] == (folder / "full" / "model.safetensors").stat().st_size


def test_predictions_belong_to_their_texts(sweep):
    """The saved predictions, the saved scores, and a fresh look through `predict` agree, example by example."""
    _, folder, _, _ = sweep
    for result in read_json(folder / "results.json"):
        rows = read_lines(folder / result["method"] / "predictions.jsonl")
        assert [row["text"] for row in rows] == [row["text"] for row in read_lines(folder / "data" / "test.jsonl")]
        right = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
        assert right == pytest.approx(result["test"]["accuracy"]["value"])
        fresh = predict(folder / result["method"], [row["text"] for row in rows])
        for row, again in zip(rows, fresh, strict=True):
            assert again["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)


def test_intervals_can_be_computed_again_from_the_predictions(sweep):
    from trimtab.lab.evaluate import intervals

    _, folder, _, _ = sweep
    settings = Settings.model_validate(read_json(folder / "full" / "settings.json"))
    again = intervals(settings.task.metrics, read_lines(folder / "full" / "predictions.jsonl"), settings.evaluate)
    assert again == read_json(folder / "full" / "metrics.json")["test"]


def test_the_manifest_says_what_it_takes_to_repeat(sweep):
    file, folder, _, _ = sweep
    manifest = read_json(folder / "manifest.json")
    assert manifest["seeds"]["split"] == 0
    assert manifest["seeds"]["train"]["lora"] == 0
    assert manifest["data"]["examples"] == {"train": 140, "validation": 30, "test": 30}
    assert set(manifest["environment"]["packages"]) >= {"trimtab", "torch", "transformers"}
    assert manifest["environment"]["threads"] >= 1
    assert manifest["settings"]["lora"]["method"] == {"lora": {"r": 4, "target_modules": ["query", "value"]}}
    assert (folder / "experiment.yaml").read_text() == file.read_text()
    for picture in ("quality.png", "quality.svg"):
        assert (folder / picture).stat().st_size > 10_000


def test_a_finished_folder_holds_no_checkpoint(sweep):
    _, folder, _, _ = sweep
    assert not list(folder.glob("*/checkpoint-*"))
    assert not list(folder.rglob("*.tmp*"))


def test_every_method_starts_from_the_same_head(sweep):
    import torch

    from trimtab.lab.models import build

    _, folder, _, _ = sweep
    heads = []
    for title in ("full", "lora", "prefix_tuning"):
        settings = Settings.model_validate(read_json(folder / title / "settings.json"))
        model = build(settings, read_json(folder / title / "facts.json")).model
        trained = [value for name, value in model.named_parameters() if "classifier" in name and value.requires_grad]
        heads.append(next(value for value in trained if value.ndim == 2))
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])


def test_the_same_command_keeps_what_is_finished(sweep, tmp_path):
    """Without the method that fails, nothing is left to do, and no file of a method changes."""
    file, folder, _, _ = sweep
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*") if path.parent.name in ("full", "lora")}
    fewer = tmp_path / "sweep.yaml"
    lines = [line for line in file.read_text().splitlines() if "broken" not in line]
    fewer.write_text("\n".join(lines))
    status, said = run_here(fewer, folder.parent)
    assert status == 0
    assert "lora: finished before" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_changed_settings_are_refused_and_named(sweep, tmp_path):
    file, folder, _, _ = sweep
    changed = tmp_path / "sweep.yaml"
    changed.write_text(file.read_text().replace("r: 4", "r: 2").replace("epochs: 2", "epochs: 3"))
    with pytest.raises(RunError) as caught:
        run_here(changed, folder.parent)
    said = str(caught.value)
    assert f"{folder / 'full'}: train.epochs was 2, is now 3\n" in said
    assert f"{folder / 'lora'}: method.lora.r was 4, is now 2; train.epochs was 2, is now 3\n" in said
    assert "Give the experiment another `name`, or delete these folders" in said


def wait_for(condition, seconds: float = 60):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise TimeoutError(condition)


def test_interrupted_and_killed_and_yet_the_same_result(experiment, tmp_path):
    """Ctrl-C, then a kill of the training process, then to the end: bit for bit what an undisturbed run gives."""
    file = experiment(LONG, name="long", epochs=12)
    status, _ = run_here(file, tmp_path / "undisturbed")
    assert status == 0
    partial = tmp_path / "runs" / "long" / "lora.partial"

    started = start("run", file, "--out", tmp_path / "runs")
    before = wait_for(lambda: partial.exists() and last_checkpoint(partial))
    children = psutil.Process(started.pid).children()
    started.send_signal(signal.SIGINT)
    said, complained = started.communicate(timeout=180)
    assert started.returncode == 130, complained
    assert "Interrupted. Finished and kept: nothing yet." in said
    assert f"trimtab run {file} --out {tmp_path / 'runs'}" in said
    assert not any(child.is_running() for child in children)

    started = start("run", file, "--out", tmp_path / "runs")
    wait_for(lambda: last_checkpoint(partial) not in (None, before))
    os.kill(psutil.Process(started.pid).children()[0].pid, signal.SIGKILL)
    said, _ = started.communicate(timeout=180)
    assert started.returncode == 1
    assert "lora failed: its process ended with status -9" in said
    with pytest.raises(RunError, match=r"lora is not finished; run its experiment again"):
        predict(partial.with_name("lora"), ["w1"])

    spent = read_json(last_checkpoint(partial) / "trainer_state.json")["stateful_callbacks"]["Meter"]["attributes"]
    status, _ = run_here(file, tmp_path / "runs")
    assert status == 0
    undisturbed, resumed = (tmp_path / out / "long" / "lora" for out in ("undisturbed", "runs"))
    assert (undisturbed / "predictions.jsonl").read_text() == (resumed / "predictions.jsonl").read_text()
    assert read_json(resumed / "metrics.json")["seconds"] > spent["seconds"] > 0
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (undisturbed, resumed))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_half_a_checkpoint_is_passed_over(tmp_path):
    for number, state in ((5, "{}"), (10, '{"half'), (9, "{}")):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-15").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


def test_predict_says_what_is_there(sweep):
    _, folder, _, _ = sweep
    with pytest.raises(RunError, match=r"no finished method in .*lor; did you mean 'lora'\? allowed: full, lora, pref"):
        predict(folder / "lor", ["w1"])
    with pytest.raises(RunError, match=r"give the folder of a method: runs/<name>/<method>"):
        predict(folder, ["w1"])


def test_predict_on_the_command_line(sweep, tmp_path):
    _, folder, _, _ = sweep
    texts = tmp_path / "texts.txt"
    texts.write_text("w30 w31\n")
    arguments = ["predict", str(folder / "lora"), "w1 w2", "--file", str(texts)]
    machine = CliRunner().invoke(app, [*arguments, "--json"])
    answers = [json.loads(line) for line in machine.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == ["w1 w2", "w30 w31"]
    assert answers == predict(folder / "lora", ["w1 w2", "w30 w31"])
    table = CliRunner().invoke(app, arguments).stdout
    for answer in answers:
        (row,) = [line for line in table.splitlines() if answer["text"] in line]
        assert answer["predicted"] in row
        assert f"{answer['probabilities'][answer['predicted']]:.3f}" in row


def test_a_new_head_is_found_wherever_the_checkpoint_has_none_that_fits(sweep):
    """From the bare encoder, and from a model fine-tuned for another number of labels."""
    from trimtab.lab.tasks.text_classification import TextClassification

    _, folder, _, _ = sweep
    source = read_json(folder / "full" / "settings.json")["model"]["source"]
    task = TextClassification()
    for place, labels, new in ((source, "ab", ["classifier"]), (folder / "full", "abc", ["classifier"])):
        loaded = task.load(str(place), None, {"labels": list(labels)})
        assert loaded.model.config.num_labels == len(labels)
        assert loaded.new_modules == new


def test_a_model_in_bf16_is_used_as_it_was_trained(experiment, tmp_path):
    """Trained in bf16 on any device, and answered by `predict` in the number format of the base."""
    import torch

    from trimtab.lab.models import tuned

    lora = "- lora: {r: 2, target_modules: [query], train: {precision: bf16}}"
    file = experiment(lora, name="half")
    file.write_text(
        file.read_text().replace("model: ", "model: {source: ").replace("\ntask", ", dtype: bfloat16}\ntask")
    )
    status, said = run_here(file, tmp_path / "runs")
    assert status == 0, said
    folder = tmp_path / "runs" / "half" / "lora"
    settings = Settings.model_validate(read_json(folder / "settings.json"))
    loaded = tuned(settings, read_json(folder / "facts.json"), folder)
    assert {p.dtype for name, p in loaded.model.named_parameters() if "base_layer" in name} == {torch.bfloat16}
    rows = read_lines(folder / "predictions.jsonl")
    fresh = predict(folder, [row["text"] for row in rows])
    assert [row["predicted"] for row in fresh] == [row["predicted"] for row in rows]

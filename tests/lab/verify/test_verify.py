"""A run verified: bit-equal as it is; each planted change is named as the cause."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trimtab.lab.commands import app
from trimtab.lab.errors import LabError, RunError
from trimtab.lab.files import fingerprint, read_json, write_json
from trimtab.lab.measure import environment
from trimtab.lab.verify import causes
from trimtab.lab.verify.again import settings_of
from trimtab.lab.verify.closeness import Verdict, answers, flat, metrics, tensors
from trimtab.lab.verify.container import command, recipe, verify_within
from trimtab.lab.verify.verify import find, verify


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The finished run in a place of its own."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


@pytest.fixture
def here(monkeypatch):
    """Second runs in this process: several times as fast."""

    def train(folder, title, progress) -> None:
        from trimtab.lab.callbacks import Events
        from trimtab.lab.train import train as train_here

        train_here(folder, title, Events(io.StringIO()))

    monkeypatch.setattr("trimtab.lab.verify.again.train", train)


def verified(place: Path, **options) -> tuple[int, dict, str]:
    """Exit status, what `verify.json` holds, and what was printed."""
    said = io.StringIO()
    status = verify(place, Console(file=said, width=200), **options)
    return status, read_json(place / "verify.json"), said.getvalue()


def edit(path: Path, key: str, value: object) -> None:
    """Change one value in a JSON file."""
    whole = read_json(path)
    *way, last = key.split(".")
    place = whole
    for part in way:
        place = place[part]
    place[last] = value
    write_json(path, whole)


def named(report: dict, kind: str) -> str:
    """What the report says of one kind of cause."""
    return "; ".join(cause["what"] for cause in report["causes"] if cause["kind"] == kind)


def test_an_unchanged_run_is_bit_equal(copy):
    status, report, said = verified(copy)
    assert status == 0
    assert report["verdict"] == "bit-equal"
    assert report["causes"] == []
    compared = report["runs"]["lora"]["compared"]
    trained = load_file(copy / "lora" / "adapter_model.safetensors")
    assert {row["name"] for row in compared if row["what"] == "tensors"} == trained.keys()
    assert {row["verdict"] for row in compared} == {"bit-equal"}
    assert "test.accuracy.value" in {row["name"] for row in compared}
    assert "lora: step" in said or "lora: finished" in said
    assert [path.name for path in copy.parent.iterdir()] == ["tiny"]


def test_the_second_run_can_be_kept_and_another_seed_is_named(copy, here):
    edit(copy / "manifest.json", "settings.lora.train.seed", 1)
    status, report, said = verified(copy / "lora", keep=True)
    assert status == 1
    assert report["verdict"] == "different"
    told = named(report, "settings")
    assert "lora: train.seed is 1 in manifest.json, 0 in settings.json" in told
    assert "their hash is another" in told
    assert "train.seed is 1 in manifest.json" in said
    assert {row["what"] for row in report["runs"]["lora"]["compared"] if row["verdict"] == "different"} >= {"tensors"}
    kept = copy.with_name("tiny.second")
    assert read_json(kept / "lora" / "settings.json")["train"]["seed"] == 1
    with pytest.raises(RunError, match="is there already"):
        verify(copy, Console(file=io.StringIO()), keep=True)


def test_a_changed_example_is_named(copy, tmp_path, here):
    source = tmp_path / "words.csv"
    lines = Path(read_json(copy / "manifest.json")["experiment"]["data"]["source"]).read_text().splitlines()
    source.write_text("\n".join([lines[0], f"w39 {lines[1]}", *lines[2:]]) + "\n")
    edit(copy / "manifest.json", "experiment.data.source", str(source))
    _, report, _ = verified(copy)
    assert report["verdict"] != "bit-equal"
    assert "1 example new, 1 gone" in named(report, "data")
    assert {cause["kind"] for cause in report["causes"]} == {"data"}


def test_a_changed_tensor_is_named(copy, here):
    file = copy / "lora" / "adapter_model.safetensors"
    held = load_file(file)
    name = sorted(held)[0]
    held[name][0] += 0.5
    save_file(held, file)
    status, report, _ = verified(copy)
    assert status == 1
    unequal = [row for row in report["runs"]["lora"]["compared"] if row["verdict"] != "bit-equal"]
    assert [(row["what"], row["name"]) for row in unequal] == [("tensors", name)]
    assert "largest difference 0.5" in unequal[0]["said"]
    assert "lora/adapter_model.safetensors was changed after the run" in named(report, "result")
    assert {cause["kind"] for cause in report["causes"]} == {"result"}


def test_another_version_is_named_and_does_not_change_the_verdict(copy, here):
    edit(copy / "manifest.json", "environment.packages.torch", "1.0")
    source = Path(read_json(copy / "manifest.json")["experiment"]["data"]["source"])
    edit(copy / "manifest.json", "experiment.data.source", str(source.with_name("gone.csv")))
    status, report, said = verified(copy)
    assert (status, report["verdict"]) == (0, "bit-equal")
    assert "packages.torch was '1.0', is now" in named(report, "versions")
    assert "could not be read from its source" in said
    assert "without effect" in said


def test_each_part_of_the_environment_is_a_cause():
    now = environment()
    changes = {
        "packages.numpy": ("1.0", "versions"),
        "processor": ("another", "hardware"),
        "gpus": (["NVIDIA H100"], "hardware"),
        "kernels.cpu": ("NO AVX", "hardware"),
        "threads": (99, "threads"),
        "determinism.algorithms": ("maybe", "determinism"),
        "code.hash": ("0" * 64, "code"),
    }
    for key, (value, kind) in changes.items():
        before = read(now)
        place = before
        *way, last = key.split(".")
        for part in way:
            place = place[part]
        place[last] = value
        assert {cause.kind for cause in causes.of_environment(before, now)} == {kind}, key
    before = read(now) | {"variables": {"OMP_NUM_THREADS": "7"}}
    (cause,) = causes.of_environment(before, now | {"variables": {}})
    assert cause.what == "variables.OMP_NUM_THREADS was '7', is now None"
    committed = read(now)
    committed["code"]["commit"] = "other"
    assert not list(causes.of_environment(committed, now))


def read(value):
    """A deep copy, as a file would give it."""
    import json

    return json.loads(json.dumps(value))


def test_an_old_manifest_that_notes_less_accuses_nothing():
    before = {"python": environment()["python"], "packages": {}}
    assert not list(causes.of_environment(before, environment()))


def test_a_changed_model_and_kept_example_are_named(copy):
    (found,) = causes.of_model({"model.safetensors": "a" * 64}, {"model.safetensors": "b" * 64})
    assert found.kind == "model"
    from trimtab.lab.data import Prepared, load_parts
    from trimtab.lab.folders import RunFolder

    noted = read_json(copy / "manifest.json")["data"]["hash"]
    kept, now = Prepared(parts=load_parts(copy / "data")), Prepared(parts=load_parts(copy / "data"))
    assert not list(causes.of_data(RunFolder(copy), noted, now, kept))
    kept.parts["test"][0]["text"] += " more"
    (found,) = causes.of_data(RunFolder(copy), noted, now, kept)
    assert found.what.startswith("data/ was changed after the run")


def test_tensors_are_judged_by_their_norm(tmp_path):
    one = {"same": torch.ones(4), "near": torch.ones(4), "far": torch.ones(4), "gone": torch.ones(1)}
    two = {"same": torch.ones(4), "near": torch.ones(4) + 1e-5, "far": torch.ones(4) * 2, "shape": torch.ones(2)}
    one["nan"] = two["nan"] = torch.tensor([float("nan")])
    save_file(one, tmp_path / "a.safetensors")
    save_file(two, tmp_path / "b.safetensors")
    found = {row.name: row.verdict for row in tensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 1e-3)}
    different = dict.fromkeys(("far", "gone", "shape"), Verdict.DIFFERENT)
    equal = dict.fromkeys(("same", "nan"), Verdict.BIT_EQUAL)
    assert found == different | equal | {"near": Verdict.WITHIN_TOLERANCE}


def test_metrics_leave_clocks_out():
    one = {"seconds": 1, "test": {"f1": {"value": 0.5}}, "kind": "lora", "validation": {"best": None}}
    two = {"seconds": 2, "test": {"f1": {"value": 0.50001}}, "kind": "ia3", "validation": {"best": None}}
    found = {row.name: row.verdict for row in metrics(one, two, 1e-3)}
    assert found == {
        "test.f1.value": Verdict.WITHIN_TOLERANCE,
        "kind": Verdict.DIFFERENT,
        "validation.best": Verdict.BIT_EQUAL,
    }
    assert flat({"a": [1, {"b": 2}]}) == {"a.0": 1, "a.1.b": 2}


def test_answers_count_examples(tmp_path):
    (tmp_path / "a").write_text('{"predicted": "x", "p": 0.1}\n{"predicted": "y"}\n')
    (tmp_path / "b").write_text('{"predicted": "x", "p": 0.2}\n{"predicted": "y"}\n')
    (tmp_path / "c").write_text('{"predicted": "x", "p": 0.1}\n{"predicted": "x"}\n')
    (near,) = answers(tmp_path / "a", tmp_path / "b")
    (far,) = answers(tmp_path / "a", tmp_path / "c")
    assert (near.verdict, far.verdict) == (Verdict.WITHIN_TOLERANCE, Verdict.DIFFERENT)
    assert far.said == "1 of 2 examples are answered the same"


def test_settings_that_no_longer_hold_are_told(copy):
    manifest = read_json(copy / "manifest.json")
    manifest["settings"]["lora"]["train"]["epochs"] = 0
    _, (title,) = find(copy)
    from trimtab.lab.folders import RunFolder

    with pytest.raises(RunError, match=r"train\.epochs: Input should be greater than 0"):
        settings_of(manifest, RunFolder(copy).method(title), "hash")
    values = {key: value for key, value in manifest["settings"]["lora"].items() if key != "hash"}
    assert fingerprint(values) != manifest["settings"]["lora"]["hash"]


def test_what_is_no_run_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "nothing")])
    assert done.exit_code == 2
    assert "there is no finished method in" in done.stderr


def test_a_container_needs_an_engine(copy, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LabError, match="needs podman or docker") as caught:
        verify_within(copy, 1e-3, Console(file=io.StringIO()))
    manifest = read_json(copy / "manifest.json")
    assert recipe(manifest) in str(caught.value)
    assert f'"torch=={manifest["environment"]["packages"]["torch"]}"' in recipe(manifest)


def test_a_container_sees_the_run_the_model_and_the_data(copy, monkeypatch, tmp_path):
    """With an engine that only notes how it was called."""
    (tmp_path / "bin").mkdir()
    engine = tmp_path / "bin" / "podman"
    engine.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest "$1" = build || exit 7\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    assert verify_within(copy, 1e-3, Console(file=io.StringIO())) == 7
    built, started = (tmp_path / "calls").read_text().splitlines()
    assert built.startswith("build -t trimtab-verify:tiny")
    experiment = read_json(copy / "manifest.json")["experiment"]
    for source in (experiment["model"]["source"], experiment["data"]["source"]):
        assert f"--volume={source}:{source}:ro" in started
    assert f"--volume={copy.parent}:{copy.parent} " in started
    assert command("podman", "i", copy, copy.parent, read_json(copy / "manifest.json"), 1e-3)[-1] == "0.001"

"""Grids, seeds and trials: which runs an experiment means, what they are called, and which learning rate is taken."""

import json

import pytest

from trimtab.lab.check import load_experiment
from trimtab.lab.errors import ExperimentError
from trimtab.lab.files import read_json, read_lines, write_json
from trimtab.lab.folders import RunFolder
from trimtab.lab.sweep import Sweep

from .conftest import write_experiment
from .test_run import run_here

GRID = """
- lora:
    target_modules: [query, value]
    grid: {r: [2, 4], train.weight_decay: [0.0, 0.1]}
    seeds: [0, 3]
- full
"""
BASELINES = """
- untrained
- linear_probe
- lora: {r: 2, target_modules: [query, value], quantize: nf4, seeds: [0, 1], train: {epochs: 2}}
"""


def test_a_grid_and_seeds_are_runs_with_telling_names(experiment):
    runs = load_experiment(experiment(GRID)).runs
    assert [run.title for run in runs[:3]] == [
        "lora-r2-weight_decay0.0-seed0",
        "lora-r2-weight_decay0.0-seed3",
        "lora-r2-weight_decay0.1-seed0",
    ]
    assert len(runs) == 2 * 2 * 2 + 1
    assert runs[-1].title == runs[-1].group == "full"
    first = runs[1]
    assert (first.method.r, first.method.train.weight_decay, first.method.train.seed) == (2, 0.0, 3)
    assert first.options == {"r": 2, "train.weight_decay": 0.0}
    assert first.group == runs[0].group == "lora-r2-weight_decay0.0"


def test_a_wrong_grid_is_refused_with_all_that_is_wrong(experiment):
    with pytest.raises(ExperimentError) as caught:
        load_experiment(experiment("- lora: {target_modules: [query], grid: {rank: [2], r: [-1, 4]}}"))
    said = str(caught.value)
    assert "methods[0]: grid {'rank': 2, 'r': -1}" in said
    assert "-1" in said


def test_a_wrong_grid_is_told_beside_other_mistakes(experiment):
    file = experiment("- lora: {target_modules: [query], grid: {rank: [2]}}\n- qlora")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(file)
    said = str(caught.value)
    assert "2 mistakes" in said
    assert "methods[0]: grid {'rank': 2}" in said
    assert "methods[1]: unknown name; did you mean 'lora'?" in said


def test_runs_of_one_name_are_refused(experiment):
    entries = "- lora: {target_modules: [query], grid: {r: [2]}}\n- lora: {name: lora-r2, target_modules: [query]}"
    with pytest.raises(ExperimentError, match=r"several runs would be called lora-r2; give the methods a `name` each"):
        load_experiment(experiment(entries))


@pytest.fixture(scope="module")
def baselines(tmp_path_factory, tiny_model, tiny_data):
    folder = tmp_path_factory.mktemp("baselines")
    train = "epochs: 1, batch_size: 16, learning_rate: 1.0e-2, tune: [0.0001, 1]"
    track = "track: {to: [tensorboard]}\n"
    file = write_experiment(folder / "b.yaml", tiny_model, tiny_data, BASELINES, train, track)
    status, said = run_here(file, folder / "runs")
    assert status == 0, said
    return file, folder / "runs" / "b", said


def test_baselines_train_what_they_say(baselines):
    _, folder, _ = baselines
    results = {result["method"]: result for result in read_json(folder / "results.json")}
    assert list(results) == ["untrained", "linear_probe", "lora-seed0", "lora-seed1"]
    assert results["untrained"]["parameters"]["trainable"] == 0
    assert results["untrained"]["seconds"] == 0
    assert results["linear_probe"]["parameters"]["trainable"] == 16 * 2 + 2
    assert {results[f"lora-seed{seed}"]["group"] for seed in (0, 1)} == {"lora"}
    assert [results[f"lora-seed{seed}"]["seed"] for seed in (0, 1)] == [0, 1]
    assert results["linear_probe"]["tokens_per_second"] > 0


def test_the_rate_is_chosen_on_validation_by_trials_of_the_same_number(baselines):
    _, folder, said = baselines
    for group in ("linear_probe", "lora"):
        trials = [folder / "trials" / f"{group}-x{factor}" for factor in ("0.0001", "1")]
        measured = [read_json(path / "metrics.json") for path in trials]
        assert all("test" not in result for result in measured)
        best = max(measured, key=lambda result: result["validation"]["best"])
        title = group if group == "linear_probe" else "lora-seed0"
        assert read_json(folder / title / "metrics.json")["learning_rate"] == best["learning_rate"]
        assert f"{group}: learning rate {best['learning_rate']:g}" in said
    assert not (folder / "trials" / "untrained-x1").exists()


def test_the_best_trial_decides_whichever_it_is(baselines):
    file, folder, _ = baselines
    experiment = load_experiment(file)
    sweep = Sweep(experiment, RunFolder(folder), "")
    trials = sweep.trials(experiment.runs[1])
    place = folder / "trials" / "linear_probe-x0.0001" / "metrics.json"
    before = read_json(place)
    try:
        write_json(place, before | {"validation": {"metric": "accuracy", "best": 2.0}})
        assert sweep._best(trials) == pytest.approx(1e-6)
    finally:
        write_json(place, before)


def test_curves_are_kept_and_tracked(baselines):
    _, folder, _ = baselines
    rows = read_lines(folder / "lora-seed0" / "history.jsonl")
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == sorted({row["step"] for row in losses})
    assert sum("eval_accuracy" in row for row in rows) == 2
    assert list((folder / "lora-seed0").rglob("events.out.tfevents*"))


def test_half_a_line_of_the_curves_and_later_steps_are_dropped(tmp_path):
    from types import SimpleNamespace

    from trimtab.lab.callbacks import History

    path = tmp_path / "history.jsonl"
    rows = [{"step": step, "seconds": step, "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "se')
    history = History(path)
    history.on_train_begin(None, SimpleNamespace(global_step=2), None)
    history.on_log(None, SimpleNamespace(global_step=3), None, {"loss": 0.5})
    again = read_lines(path)
    assert again[:2] == rows[:2]
    assert (again[2]["step"], again[2]["loss"]) == (3, 0.5)
    assert again[2]["seconds"] >= 2

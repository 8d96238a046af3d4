"""Every message about a mistake in an experiment file is read here."""

import json
from pathlib import Path

import pytest

from trimtab.lab.check import load_experiment
from trimtab.lab.errors import ExperimentError

GOOD = """\
name: good
model: asset:minilm-l6
task: text_classification
data: asset:trec
methods: [full, lora]
"""


def complaints(tmp_path: Path, text: str) -> list[str]:
    """The messages, as `LINE: message`."""
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    with pytest.raises(ExperimentError) as caught:
        load_experiment(file)
    title, *lines = str(caught.value).splitlines()
    assert title == f"{len(lines)} mistake{'s' * (len(lines) > 1)} in {file}; nothing was started"
    return [line.removeprefix(f"  {file}:") for line in lines]


def test_a_good_file(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(GOOD)
    experiment = load_experiment(file)
    assert [method.title for method in experiment.methods] == ["full", "lora"]
    assert experiment.model.source == "asset:minilm-l6"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "name: good",
            "name: good\ntrian: {}",
            "2: trian: unknown key; did you mean 'train'? allowed: data, evaluate, ",
        ),
        ("name: good\n", "", "1: the key 'name' is missing"),
        ("name: good", "name: a/b", "1: name: 'a/b' names a folder: begin with a letter or a digit"),
        ("minilm-l6", "minilm", "2: model: no model asset is called 'minilm'; did you mean 'minilm-l6'?"),
        ("asset:minilm-l6", "asset:trec", "2: model: no model asset is called 'trec'; allowed: minilm-l6"),
        ("asset:minilm-l6", "{source: ./none}", "2: model.source: no such file or folder: "),
        ("text_classification", "text_clasification", "3: task: unknown name; did you mean 'text_classification'?"),
        (
            "text_classification",
            "{text_classification: {txt: a}}",
            "3: task.text_classification.txt: unknown key; did you mean 'text'? "
            "allowed: class_weights, label, max_length, text",
        ),
        (
            "text_classification",
            "{text_classification: {class_weights: heavy}}",
            "3: task.text_classification.class_weights: input should be 'none' or 'balanced'; found 'heavy'",
        ),
        ("asset:trec", "none.csv", "4: data: no such file or folder: "),
        (
            "asset:trec",
            "{source: asset:trec, split: {validation: 1.5}}",
            "4: data.split.validation: a share lies between 0 and 1; found 1.5",
        ),
        (
            "asset:trec",
            "{source: asset:trec, split: {validation: 0.5, test: 0.5}}",
            "4: data.split: validation and test take 1 of the examples and leave none to train on",
        ),
        ("full, lora", "full, loraa", "5: methods[1]: unknown name; did you mean 'lora'? allowed: adalora, "),
        ("full, lora", "full, full", "5: methods[1]: methods[0] is called 'full' too; give one of them another `name`"),
        ("full, lora", "{lora: 1, full: 2}", "5: methods[0]: write one name, alone or with its options"),
        ("[full, lora]", "[]", "5: methods: list should have at least 1 item after validation, not 0"),
        ("lora", "lora: {r: eight}", "5: methods[1].lora.r: input should be a valid integer"),
        ("lora", "lora: {rr: 8}", "5: methods[1].lora.rr: unknown key; did you mean 'r'? allowed: "),
        ("lora", "lora: {bias: some}", "5: methods[1].lora.bias: input should be 'none', 'all' or 'lora_only'; found"),
        (
            "lora",
            "lora: {target_modules: 5}",
            "5: methods[1].lora.target_modules: input should be a valid string or input should be a valid list; "
            "found 5",
        ),
        (
            "lora",
            "lora: {train: {learning_rte: 1}}",
            "5: methods[1].lora.train.learning_rte: unknown key; did you mean 'learning_rate'? "
            "allowed: accumulate, batch_size, checkpointing, epochs, learning_rate, max_grad_norm, ",
        ),
        (
            "lora",
            "lora: {train: {epochs: 0}}",
            "5: methods[1].lora.train.epochs: input should be greater than 0; found",
        ),
        ("lora", "loha: {layers_pattern: x}", "5: methods[1].loha: "),
    ],
)
def test_one_mistake(tmp_path, before, after, message):
    assert before in GOOD
    (found,) = complaints(tmp_path, GOOD.replace(before, after))
    assert found.startswith(message)


def test_all_mistakes_at_once_in_the_order_of_the_file(tmp_path):
    text = GOOD.replace("name: good", "nam: good").replace("[full, lora]", "\n  - full\n  - full\n  - lora: {r: x}")
    found = complaints(tmp_path, text + "train:\n  epochs: 1\n  epochs: none\n")
    assert [line.split(":")[0] for line in found] == ["1", "1", "7", "8", "11", "11"]
    assert found[5] == "11: train.epochs: this key stands twice, first in line 10; keep one"


def test_a_key_that_stands_twice(tmp_path):
    found = complaints(tmp_path, GOOD + "name: other\n")
    assert found == ["6: name: this key stands twice, first in line 1; keep one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "1: not valid YAML: "),
        ("- full", "1: an experiment is a mapping of keys to values; allowed: data, evaluate, methods, model, name, "),
        ("", "1: an experiment is a mapping of keys to values; "),
    ],
)
def test_not_an_experiment_at_all(tmp_path, text, message):
    (found,) = complaints(tmp_path, text)
    assert found.startswith(message)


def test_no_such_file(tmp_path):
    with pytest.raises(ExperimentError, match=r"cannot read the experiment file .*none.yaml: .*No such file"):
        load_experiment(tmp_path / "none.yaml")


def test_paths_are_seen_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\n")
    file = tmp_path / "experiment.yaml"
    file.write_text(GOOD.replace("asset:trec", "rows.csv"))
    monkeypatch.chdir("/")
    assert load_experiment(file).data.source == str(tmp_path / "rows.csv")


def test_a_method_changes_only_what_it_names(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(
        GOOD.replace("[full, lora]", "[full, lora: {train: {epochs: 7}}]") + "train: {batch_size: 4, epochs: 2}\n"
    )
    experiment = load_experiment(file)
    full, lora = (experiment.settings(method, "hash").train for method in experiment.methods)
    assert (full.epochs, full.batch_size, full.learning_rate) == (2, 4, 5e-5)
    assert (lora.epochs, lora.batch_size, lora.learning_rate) == (7, 4, 1e-3)


def test_settings_survive_their_file(tmp_path):
    from trimtab.lab.config import Settings

    file = tmp_path / "experiment.yaml"
    file.write_text(GOOD.replace("lora", "lora: {r: 4, name: small}"))
    experiment = load_experiment(file)
    settings = experiment.settings(experiment.methods[1], "hash")
    again = Settings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert json.loads(settings.model_dump_json())["method"] == {"lora": {"r": 4, "name": "small"}}


def test_the_schema_knows_every_option_of_every_method():
    from trimtab.lab.config import Experiment
    from trimtab.lab.methods import all_methods

    schema = Experiment.model_json_schema()
    names, *entries = schema["properties"]["methods"]["items"]["anyOf"]
    assert names["enum"] == sorted(all_methods())
    assert {next(iter(entry["properties"])) for entry in entries} == set(all_methods())
    lora = schema["$defs"]["lora"]["properties"]
    assert lora["r"]["type"] == "integer"
    assert "Names the result's folder" in lora["name"]["description"]

"""Preparing data: nothing leaks, nothing is lost silently, and mistakes are named."""

import json
import random

import pytest

from trimtab.lab.config import Data, Split
from trimtab.lab.data import load_parts, prepare
from trimtab.lab.errors import DataError
from trimtab.lab.tasks.text_classification import TextClassification

TASK = TextClassification()


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rows_with_copies(seed: int) -> list[dict[str, str]]:
    """60 texts a label; many stand several times, in other case, with other spaces, in other Unicode forms."""
    draws = random.Random(seed)
    rows = [{"text": f"café number {number}", "label": f"{number % 3}"} for number in range(180)]
    forms = [str.upper, str.title, lambda text: text.replace(" ", "  "), lambda text: text.replace("é", "e\u0301")]
    rows += [row | {"text": draws.choice(forms)(row["text"])} for row in draws.choices(rows, k=300)]
    draws.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_no_input_stands_in_two_parts(tmp_path, seed):
    source = write(tmp_path / "rows.jsonl", rows_with_copies(seed))
    prepared = prepare(Data(source=source, split=Split(seed=seed)), TASK)
    keys = {part: {TASK.key(row) for row in rows} for part, rows in prepared.parts.items()}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 180
    assert {part: len(rows) for part, rows in prepared.parts.items()} == {"train": 126, "validation": 27, "test": 27}
    assert prepared.facts(TASK)["targets"]["test"] == {"0": 9, "1": 9, "2": 9}
    assert prepared.cleaning.duplicates == 300


def test_the_division_depends_on_the_seed_alone(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows_with_copies(0))
    first, same, other = (prepare(Data(source=source, split=Split(seed=seed)), TASK) for seed in (1, 1, 2))
    assert first.hash == same.hash != other.hash


def test_conflicts_take_the_most_frequent_label_else_the_first(tmp_path):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]
    rows += [{"text": "often b", "label": label} for label in "abb"]
    rows += [{"text": "Equally", "label": "b"}, {"text": "equally", "label": "a"}]
    prepared = prepare(Data(source=write(tmp_path / "rows.jsonl", rows)), TASK)
    found = {row["text"]: row["label"] for part in prepared.parts.values() for row in part}
    assert (found["often b"], found["Equally"]) == ("b", "b")
    assert prepared.cleaning.conflicts == 2


def test_empty_rows_are_counted(tmp_path):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]
    rows += [{"text": "  ", "label": "a"}, {"text": None, "label": "a"}, {"text": "no label", "label": None}]
    cleaning = prepare(Data(source=write(tmp_path / "rows.jsonl", rows)), TASK).cleaning
    assert (cleaning.read, cleaning.empty) == (43, 3)


def test_given_parts_keep_their_rows_and_lose_what_crosses(tmp_path):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [*rows[:4], {"text": "only here", "label": "a"}])
    prepared = prepare(Data(source=train, split=Split(test=test, validation=0.25)), TASK)
    assert [row["text"] for row in prepared.parts["test"]] == ["text 0", "text 1", "text 2", "text 3", "only here"]
    assert (len(prepared.parts["validation"]), len(prepared.parts["train"])) == (9, 27)
    assert prepared.cleaning.crossings == 4


def test_numbers_of_a_hub_data_set_get_their_names(tmp_path):
    import datasets

    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    parts = {}
    for part in ("main", "dev"):
        rows = {"text": [f"{part} {number}" for number in range(40)], "label": [0, 1] * 20}
        parts[part] = datasets.Dataset.from_dict(rows, features=names)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    data = Data(source=str(tmp_path / "saved"), split=Split(train="main", validation="dev", test=0.5))
    prepared = prepare(data, TASK)
    assert {part: len(rows) for part, rows in prepared.parts.items()} == {"train": 20, "validation": 40, "test": 20}
    assert prepared.parts["validation"][1] == {"text": "dev 1", "label": "yes"}


def test_saved_parts_come_back(tmp_path):
    prepared = prepare(Data(source=write(tmp_path / "rows.jsonl", rows_with_copies(0))), TASK)
    prepared.save(tmp_path / "data")
    assert load_parts(tmp_path / "data") == prepared.parts


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        ([{"txt": "a", "label": "b"}], {}, "no column 'text', did you mean 'txt'\\? allowed: label, txt. Name the col"),
        (
            [{"text": "a", "label": "b"}],
            {"test": "dev"},
            "data.split.test: .*rows.jsonl has no part 'dev'; allowed: tr",
        ),
        (
            [{"text": str(n), "label": "b" if n else "rare"} for n in range(40)],
            {},
            "cannot draw test with every class in it: too few examples of rare; ",
        ),
        (
            [{"text": str(n), "label": "ab"[n % 2]} for n in range(8)],
            {"test": 0.1},
            "cannot draw 1 example for test from 8: ",
        ),
        ([{"text": " ", "label": "b"}], {}, "no example is left for train; look at data.split, and at the columns"),
    ],
)
def test_what_cannot_be_prepared(tmp_path, rows, split, message):
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        prepare(Data(source=source, split=Split(**split)), TASK)


def test_a_label_that_is_never_trained_on(tmp_path):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]
    test = write(tmp_path / "test.jsonl", [{"text": "new", "label": "c"}])
    data = Data(source=write(tmp_path / "rows.jsonl", rows), split=Split(test=test))
    with pytest.raises(DataError, match="test has targets that train lacks: c; divide the data anew"):
        prepare(data, TASK)


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{")
    with pytest.raises(DataError, match=f"cannot read the data {file}: "):
        prepare(Data(source=str(file)), TASK)

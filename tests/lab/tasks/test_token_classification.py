"""Tags of words: which pieces have them, spans, a whole run."""

import csv

import pytest

from trimtab.lab.errors import DataError
from trimtab.lab.files import read_json, read_lines
from trimtab.lab.predict import predict
from trimtab.lab.tasks.token_classification import TokenClassification

from ..conftest import WORDS
from .conftest import phrases


def test_first_pieces_have_the_tags(tiny_model):
    from transformers import AutoTokenizer

    task, processor = TokenClassification(max_length=6), AutoTokenizer.from_pretrained(tiny_model)
    example = task.example({"tokens": ["w1", "w2-w3", "w4", "w5"], "tags": ["O", "B-X", "I-X", "new"]})
    (row,) = task.encode(processor, [example], {"labels": ["B-X", "I-X", "O"]})
    pieces = processor.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["[CLS]", "w1", "w2", "[UNK]", "w3", "[SEP]"]  # cut off
    assert row["labels"] == [-100, 2, 0, -100, -100, -100]
    assert task.example({"tokens": ["w1"], "tags": ["O", "O"]}) is None


def test_spans_become_tags_of_words():
    task, text = TokenClassification(words="text", spans="marks"), "Dr. Ada Lovelace-King met Bob."
    spans = [{"start": 26, "end": 29, "label": "PER"}, {"start": 4, "end": 18, "label": "PER"}]
    example = task.example({"text": text, "marks": spans})
    assert example["words"] == ["Dr", ".", "Ada", "Lovelace", "-", "King", "met", "Bob", "."]
    assert example["tags"] == ["O", "O", "B-PER", "I-PER", "I-PER", "I-PER", "O", "B-PER", "O"]  # half of King is in it
    assert task.question("met Bob.") == {"words": ["met", "Bob", "."]}
    assert task.example({"text": " ", "marks": []}) is None
    with pytest.raises(DataError, match="a word has one tag"):
        task.example({"text": text, "marks": [*spans, {"start": 4, "end": 7, "label": "X"}]})


def test_tags_of_another_scheme_are_refused():
    examples = [{"words": ["w1", "w2"], "tags": ["NOUN", "O"]}]
    with pytest.raises(DataError, match=r"\(O, B-x, I-x\): NOUN; rewrite them, or set `scheme: none`"):
        TokenClassification().facts(examples)
    task = TokenClassification(scheme="none")
    assert task.facts(examples) == {"labels": ["NOUN", "O"]}
    assert ([metric.name for metric in task.metrics], task.select_by) == (["tag_accuracy"], "tag_accuracy")


def test_byte_level_tokenizers_see_the_space_before_a_word(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    signs = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), "Ġa"]
    RobertaTokenizer(vocab={sign: n for n, sign in enumerate(signs)}, merges=[("Ġ", "a")]).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(vocab_size=len(signs), **sizes)).save_pretrained(tmp_path)
    loaded = TokenClassification().load(str(tmp_path), None, {"labels": ["B-X", "O"]})
    (row,) = TokenClassification().encode(
        loaded.processor, [{"words": ["a", "ab"], "tags": ["O", "B-X"]}], {"labels": ["B-X", "O"]}
    )
    assert loaded.processor.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "Ġa", "Ġa", "b", "</s>"]
    assert row["labels"] == [-100, 1, 0, -100, -100]


def test_a_run_of_token_classification(whole_run, tiny_model):
    texts = phrases(80)
    rows = [
        {"tokens": text.split(), "tags": ["B-X" if WORDS.index(w) % 2 else "O" for w in text.split()]} for text in texts
    ]
    run = whole_run(tiny_model, "token_classification", rows, "[{lora: {r: 4, target_modules: [query]}}]")
    answers = read_lines(run / "lora" / "predictions.jsonl")
    assert all(len(row["predicted"]) == len(row["words"]) for row in answers)
    right = sum(a == b for row in answers for a, b in zip(row["tags"], row["predicted"], strict=True))
    share = read_json(run / "lora" / "metrics.json")["test"]["tag_accuracy"]["value"]
    assert share == pytest.approx(right / sum(len(row["tags"]) for row in answers))
    (said,) = predict(run / "lora", ["w1 w2 w3"])
    assert len(said["predicted"]) == 3


def test_a_csv_has_words_with_blanks_between(tmp_path):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["tokens", "tags"], ["a b", "O O"]])
    assert TokenClassification().example({"tokens": "a b", "tags": "O O"}) == {"words": ["a", "b"], "tags": ["O", "O"]}

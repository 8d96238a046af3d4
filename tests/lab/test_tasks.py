"""Each task on a tiny model: what carries loss, what is measured, a whole run, and predict."""

import csv
import json
import random

import pytest
import torch

from trimtab.lab.errors import DataError
from trimtab.lab.files import read_json, read_lines
from trimtab.lab.predict import predict
from trimtab.lab.tasks.causal_lm import CausalLM
from trimtab.lab.tasks.seq2seq import Seq2Seq
from trimtab.lab.tasks.token_classification import TokenClassification

from .conftest import WORDS
from .test_run import run_here

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


def learned(tokenizer, row):
    """The tokens of an encoded example that carry loss."""
    kept = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert kept == [label for label in row["labels"] if label >= 0]
    return tokenizer.decode(kept)


def test_only_answers_carry_loss(tokenizer):
    task = CausalLM(prompt="q", response="a", template="w0 {prompt} w1 ")
    (row,) = task.encode(tokenizer, [task.example({"q": "w2 w3", "a": "w4 w5"})], {})
    assert tokenizer.decode(row["input_ids"]) == "w0 w2 w3 w1 w4 w5 </s>"
    assert learned(tokenizer, row) == "w4 w5 </s>"
    templated = CausalLM(prompt="q", response="a")
    (row,) = templated.encode(tokenizer, [templated.example({"q": "w2", "a": "w4"})], {})
    assert tokenizer.decode(row["input_ids"]) == "<user> w2 </s> <assistant> w4 </s>"
    assert learned(tokenizer, row) == "w4 </s>"


def test_in_a_chat_what_the_assistant_says_carries_loss(tokenizer):
    task = CausalLM(messages="m")
    turns = [("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"), ("assistant", "w5")]
    example = task.example({"m": [{"role": role, "content": content} for role, content in turns]})
    (row,) = task.encode(tokenizer, [example], {})
    assert learned(tokenizer, row) == "w2 w3 </s> w5 </s>"
    assert task.key(example) == "w1\nw4"


def test_a_chat_needs_a_template():
    task, plain = CausalLM(messages="m"), tokenizer_of([*SPECIAL, *WORDS])
    with pytest.raises(DataError, match="no chat template; use `prompt` and `response`"):
        task.encode(plain, [{"messages": [{"role": "assistant", "content": "w1"}]}], {})


def test_a_template_that_rewrites_turns_is_refused():
    fickle = "{% for m in messages %}<{{ m.role }}> {{ loop.length }} {{ m.content }} </s> {% endfor %}"
    turns = [{"role": role, "content": "w1"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="writes a turn otherwise"):
        CausalLM(messages="m").encode(tokenizer_of([*SPECIAL, *WORDS, *"1234"], fickle), [{"messages": turns}], {})


def test_of_a_long_prompt_the_beginning_is_cut_and_never_the_whole_answer(tokenizer):
    task = CausalLM(prompt="q", response="a", template="{prompt} ", max_length=4)
    (row,) = task.encode(tokenizer, [{"prompt": "w1 w2 w3 w4 w5", "response": "w6"}], {})
    assert tokenizer.decode(row["input_ids"]) == "w4 w5 w6 </s>"
    (row,) = task.encode(tokenizer, [{"prompt": "w1 w2", "response": "w3 w4 w5 w6"}], {})
    assert learned(tokenizer, row) == "w3 w4 w5"


def test_perplexity_is_that_of_the_model_whatever_the_padding(tokenizer, llama):
    task = CausalLM(text="t")
    loaded = task.load(str(llama), None, {})
    texts = [{"text": "w1 w2 w3"}, {"text": "w4"}, {"text": "w5 w6 w7 w8 w9"}]
    rows = task.answer(loaded.model, loaded.processor, texts, {}, 3)
    for example, row in zip(texts, rows, strict=True):
        ids = torch.tensor([[*tokenizer(example["text"]).input_ids, 1]])
        loss = loaded.model(input_ids=ids, labels=ids).loss
        assert row["tokens"] == ids.shape[1] - 1
        assert row["nll"] == pytest.approx(loss.item() * row["tokens"], rel=1e-4)


def test_forms_of_a_language_model_are_told_apart():
    for wrong in ({}, {"text": "t", "prompt": "p", "response": "r"}, {"prompt": "p"}):
        with pytest.raises(ValueError, match="name the columns of one form"):
            CausalLM(**wrong)
    with pytest.raises(ValueError, match=r"has no \{prompt\} in it"):
        CausalLM(prompt="p", response="r", template="Q:")


def test_first_pieces_have_the_tags(tiny_model):
    from transformers import AutoTokenizer

    task, processor = TokenClassification(max_length=6), AutoTokenizer.from_pretrained(tiny_model)
    example = task.example({"tokens": ["w1", "w2-w3", "w4", "w5"], "tags": ["O", "B-X", "I-X", "new"]})
    (row,) = task.encode(processor, [example], {"labels": ["B-X", "I-X", "O"]})
    pieces = processor.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["[CLS]", "w1", "w2", "[UNK]", "w3", "[SEP]"]  # cut off
    assert row["labels"] == [-100, 2, 0, -100, -100, -100]
    assert task.example({"tokens": ["w1"], "tags": ["O", "O"]}) is None


def whole_run(folder, model, task, rows, methods):
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    file = folder / "t.yaml"
    file.write_text(
        f"name: t\nmodel: {model}\ntask: {task}\ndata: rows.jsonl\nmethods: {methods}\n"
        "train: {epochs: 1, batch_size: 16, learning_rate: 1.0e-2}\nevaluate: {resamples: 1000}\n"
    )
    status, said = run_here(file, folder / "runs")
    assert status == 0, said
    return folder / "runs" / "t"


def phrases(number, seed=0):
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=draws.randint(3, 9))) for _ in range(number)]


def test_a_run_of_token_classification(tmp_path, tiny_model):
    texts = phrases(80)
    rows = [
        {"tokens": text.split(), "tags": ["B-X" if WORDS.index(w) % 2 else "O" for w in text.split()]} for text in texts
    ]
    run = whole_run(tmp_path, tiny_model, "token_classification", rows, "[{lora: {r: 4, target_modules: [query]}}]")
    answers = read_lines(run / "lora" / "predictions.jsonl")
    assert all(len(row["predicted"]) == len(row["words"]) for row in answers)
    right = sum(a == b for row in answers for a, b in zip(row["tags"], row["predicted"], strict=True))
    share = read_json(run / "lora" / "metrics.json")["test"]["tag_accuracy"]["value"]
    assert share == pytest.approx(right / sum(len(row["tags"]) for row in answers))
    (said,) = predict(run / "lora", ["w1 w2 w3"])
    assert len(said["predicted"]) == 3


def test_a_run_of_translation(tmp_path, t5):
    rows = [{"source": text, "target": text[::-1]} for text in phrases(60)]
    options = "{lora: {r: 2, target_modules: [q, v]}}"
    run = whole_run(tmp_path, t5, "{seq2seq: {max_target_length: 8}}", rows, f"[untrained, {options}]")
    answers = read_lines(run / "lora" / "predictions.jsonl")
    measured = read_json(run / "lora" / "metrics.json")["test"]
    import sacrebleu

    said, true = [row["predicted"] for row in answers], [row["target"] for row in answers]
    assert measured["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(said, [true]).score)
    assert measured["chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(said, [true]).score)
    assert measured["ter"]["value"] == pytest.approx(sacrebleu.corpus_ter(said, [true]).score)
    assert measured["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert isinstance(predict(run / "lora", ["w1 w2"])[0]["predicted"], str)


def test_a_run_of_a_language_model(tmp_path, llama):
    rows = [{"q": text, "a": text.split()[0]} for text in phrases(60)]
    lora = "{lora: {r: 2, target_modules: [q_proj], train: {epochs: 3}}}"
    methods = f"[untrained, {lora}, {{prompt_tuning: {{num_virtual_tokens: 2}}}}]"
    run = whole_run(tmp_path, llama, "{causal_lm: {prompt: q, response: a, max_new_tokens: 4}}", rows, methods)
    before, after, prompted = (
        read_json(run / title / "metrics.json")["test"]["perplexity"]["value"]
        for title in ("untrained", "lora", "prompt_tuning")
    )
    assert after < before
    assert prompted != before
    assert isinstance(predict(run / "lora", ["w1 w2", "w3"])[1]["predicted"], str)


def test_summaries_are_measured_by_rouge():
    task = Seq2Seq(measure="summary")
    from trimtab.lab.evaluate import scores

    rows = [{"target": "the cat sat", "predicted": "the cat ran"}, {"target": "a b", "predicted": "a b"}]
    found = scores(task.metrics, rows)
    assert found["rouge1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["rouge2"] == pytest.approx((1 / 2 + 1) / 2)


def test_entities_count_whole_and_by_kind():
    from trimtab.lab.evaluate import scores

    rows = [
        {"tags": ["B-A", "I-A", "O", "B-B"], "predicted": ["B-A", "I-A", "O", "B-A"]},
        {"tags": ["B-A", "I-A"], "predicted": ["B-A", "O"]},
    ]
    found = scores(TokenClassification.metrics, rows)
    assert found["entity_precision"] == pytest.approx(1 / 3)
    assert found["entity_recall"] == pytest.approx(1 / 3)
    assert found["tag_accuracy"] == pytest.approx(4 / 6)


def test_a_csv_has_words_with_blanks_between(tmp_path):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["tokens", "tags"], ["a b", "O O"]])
    assert TokenClassification().example({"tokens": "a b", "tags": "O O"}) == {"words": ["a", "b"], "tags": ["O", "O"]}

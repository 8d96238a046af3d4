"""Language models: which tokens carry loss, what is cut, whole runs."""

import math
from types import SimpleNamespace

import pytest
import torch

from trimtab.lab.errors import DataError
from trimtab.lab.files import read_json, read_lines
from trimtab.lab.predict import predict
from trimtab.lab.tasks.causal_lm import CausalLM
from trimtab.lab.train import _learnable

from ..conftest import WORDS
from .conftest import SPECIAL, phrases, tokenizer_of


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
    assert task.example({"m": [{"role": role, "content": content} for role, content in [*turns, turns[0]]]}) == example
    assert task.example({"m": [{"role": "user", "content": "w1"}]}) is None
    (asked,) = task.encode(tokenizer, [{"messages": example["messages"][:-1]}], {})
    assert "labels" not in asked
    assert tokenizer.decode(asked["input_ids"]).endswith("<user> w4 </s> <assistant>")


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


def test_a_long_text_is_read_to_its_end(tokenizer, llama):
    """In windows, as computed here by themselves; each token but the first is predicted once."""
    task, words = CausalLM(text="t", max_length=4), [f"w{number}" for number in range(9)]
    loaded = task.load(str(llama), None, {})
    rows = task.encode(tokenizer, [{"text": " ".join(words)}], {})
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == ["w0 w1 w2 w3", "w3 w4 w5 w6", "w6 w7 w8 </s>"]
    carrying = [label for row in rows for label in row["labels"] if label >= 0]
    assert tokenizer.decode(carrying) == "w1 w2 w3 w4 w5 w6 w7 w8 </s>"
    (short, row) = task.answer(loaded.model, tokenizer, [{"text": "w1"}, {"text": " ".join(words)}], {}, 2)
    ids = torch.tensor([r["input_ids"] for r in rows])
    expected = 3 * sum(loaded.model(input_ids=one[None], labels=one[None]).loss.item() for one in ids)
    assert (short["tokens"], row["tokens"]) == (1, 9)
    assert row["nll"] == pytest.approx(expected, rel=1e-4)


def test_packed_texts_leave_no_room(tokenizer):
    task = CausalLM(text="t", max_length=5, pack=True)
    rows = task.encode(tokenizer, [{"text": "w1 w2"}, {"text": "w3"}, {"text": "w4 w5 w6"}], {})
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == ["w1 w2 </s> w3 </s>", "</s> w4 w5 w6 </s>"]
    assert [sum(label >= 0 for label in row["labels"]) for row in rows] == [4, 4]
    with pytest.raises(ValueError, match="only plain `text` is packed"):
        CausalLM(messages="m", pack=True)


def test_the_end_is_learned_though_it_pads(tokenizer, llama, tmp_path):
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    bare.save_pretrained(tmp_path)
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(tmp_path)
    task = CausalLM(prompt="q", response="a", template="{prompt} ")
    loaded = task.load(str(tmp_path), None, {})
    assert loaded.processor.pad_token == "</s>"
    examples = [{"prompt": "w1", "response": "w2"}, {"prompt": "w1", "response": "w2 w3 w4"}]
    batch = task.collator(loaded.processor)(task.encode(loaded.processor, examples, {}))
    assert batch["input_ids"][0].tolist()[2:] == [1, 1, 1]
    assert batch["labels"][0].tolist()[2:] == [1, -100, -100]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]
    assert batch["labels"][1, -1] == 1


def test_answers_end_with_what_the_model_stops_at(tokenizer, llama, tmp_path):
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    wrong = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<user>", pad_token="<pad>")
    wrong.save_pretrained(tmp_path)
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(tmp_path)
    task = CausalLM(prompt="q", response="a", template="{prompt} ")
    loaded = task.load(str(tmp_path), None, {})
    (row,) = task.encode(loaded.processor, [{"prompt": "w1", "response": "w2"}], {})
    assert learned(tokenizer, row) == "w2 </s>"


def test_what_teaches_nothing_is_left_out_and_counted():
    rows = [{"labels": [-100, 3]}, {"labels": [-100, -100]}, {"labels": 0}, {}]
    job = SimpleNamespace(facts={})
    assert _learnable(job, rows) == [rows[0], rows[2], rows[3]]
    assert job.facts == {"without_loss": 1}
    assert _learnable(job, rows[:1]) is not None
    with pytest.raises(DataError, match="no token of the 1 training examples carries loss"):
        _learnable(job, rows[1:2])


def test_templates_may_hold_braces(tokenizer):
    task = CausalLM(prompt="q", response="a", template="w0 {prompt} {x} ")
    (row,) = task.encode(tokenizer, [{"prompt": "w2", "response": "w4"}], {})
    assert tokenizer.decode(row["input_ids"]) == "w0 w2 <unk> w4 </s>"


def test_answers_are_the_same_alone_and_beside_longer_questions(tokenizer, llama):
    task = CausalLM(text="t", max_new_tokens=6)
    loaded = task.load(str(llama), None, {})
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(30)  # so that what is written depends on what was asked
    questions = [task.question(text) for text in ("w1", "w5 w6 w7 w8 w9 w10", "w2 w3")]
    together = [row["predicted"] for row in task.answer(loaded.model, tokenizer, questions, {}, 3)]
    alone = [task.answer(loaded.model, tokenizer, [one], {}, 1)[0]["predicted"] for one in questions]
    assert together == alone
    assert len(set(alone)) == 3


def test_forms_of_a_language_model_are_told_apart():
    for wrong in ({}, {"text": "t", "prompt": "p", "response": "r"}, {"prompt": "p"}):
        with pytest.raises(ValueError, match="name the columns of one form"):
            CausalLM(**wrong)
    with pytest.raises(ValueError, match=r"has no \{prompt\} in it"):
        CausalLM(prompt="p", response="r", template="Q:")


def test_a_run_of_a_language_model(whole_run, llama):
    rows = [{"q": text, "a": text.split()[0]} for text in phrases(60)]
    lora = "{lora: {r: 2, target_modules: [q_proj], train: {epochs: 3}}}"
    methods = f"[untrained, {lora}, {{prompt_tuning: {{num_virtual_tokens: 2}}}}]"
    run = whole_run(llama, "{causal_lm: {prompt: q, response: a, max_new_tokens: 4, samples: 3}}", rows, methods)
    before, after, prompted = (
        read_json(run / title / "metrics.json")["test"]["perplexity"]["value"]
        for title in ("untrained", "lora", "prompt_tuning")
    )
    assert after < before
    shown = [row["predicted"] for row in read_lines(run / "lora" / "predictions.jsonl")]
    asked = [row["prompt"] for row in read_lines(run / "data" / "test.jsonl")[:3]]
    assert shown == [each["predicted"] for each in predict(run / "lora", asked)] + [None] * (len(shown) - 3)
    assert prompted != before
    assert isinstance(predict(run / "lora", ["w1 w2", "w3"])[1]["predicted"], str)


def test_a_run_of_chats(whole_run, llama):
    def chat(text):
        said = [{"role": "user", "content": text}, {"role": "assistant", "content": text.split()[0]}]
        return [*said, {"role": "user", "content": "w0"}, {"role": "assistant", "content": "w1 w2"}]

    rows = [{"m": chat(text)} for text in phrases(40)]
    run = whole_run(llama, "{causal_lm: {messages: m, max_new_tokens: 4}}", rows, "[full]")
    answers = read_lines(run / "full" / "predictions.jsonl")
    assert {row["tokens"] for row in answers} == {2 + 3}
    assert all(isinstance(row["predicted"], str) for row in answers)
    total = sum(row["nll"] for row in answers) / sum(row["tokens"] for row in answers)
    measured = read_json(run / "full" / "metrics.json")["test"]["perplexity"]
    assert measured["value"] == pytest.approx(math.exp(total))
    assert measured["low"] < measured["value"] < measured["high"]

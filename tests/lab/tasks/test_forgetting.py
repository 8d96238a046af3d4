"""What a model forgot: its perplexity on general text, before and after."""

import json
import math

import pytest
import torch

from trimtab.lab.check import load_experiment
from trimtab.lab.errors import ExperimentError
from trimtab.lab.files import read_json, read_lines
from trimtab.lab.tasks.causal_lm import CausalLM

from .conftest import phrases


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def perplexity(folder, texts):
    from transformers import AutoTokenizer, LlamaForCausalLM

    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total = number = 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text).input_ids, 1]])
        number += ids.shape[1] - 1
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    return math.exp(total / number)


def test_a_language_model_is_measured_before_and_after(whole_run, llama, tmp_path, monkeypatch):
    text = write(tmp_path / "general.jsonl", [{"text": text} for text in phrases(40, 7)])
    asked, ask = [], CausalLM.ask

    def noted(self, model, processor, encoded, facts, batch_size):
        asked.append((len(encoded), batch_size))
        return ask(self, model, processor, encoded, facts, batch_size)

    monkeypatch.setattr(CausalLM, "ask", noted)
    rows = [{"q": text, "a": " ".join(["w0"] * 20)} for text in phrases(60)]
    methods = "[untrained, {full: {train: {epochs: 12, learning_rate: 3.0e-2, batch_size: 8}}}]"
    run = whole_run(llama, "{causal_lm: {prompt: q, response: a}}", rows, methods, f", forgetting: {{source: {text}}}")
    untrained, full = (read_json(run / title / "metrics.json")["forgetting"] for title in ("untrained", "full"))
    (kept,) = (run / "data").glob("general-*.jsonl")
    texts = [row["text"] for row in read_lines(kept)]
    assert len(texts) == full["examples"] == 6
    assert full["before"]["value"] == pytest.approx(perplexity(llama, texts), rel=1e-4)
    assert full["after"]["value"] == pytest.approx(perplexity(run / "full", texts), rel=1e-4)
    assert full["difference"] == pytest.approx(full["after"]["value"] - full["before"]["value"])
    assert 0 < full["low"] < full["difference"] < full["high"]
    assert full["p"] < 0.01
    assert untrained["before"] == untrained["after"] == full["before"]
    assert {size for number, size in asked if number == 6} == {8}  # whatever the methods' own
    assert (untrained["difference"], untrained["p"]) == (0, 1)


def test_so_is_a_model_of_pairs(whole_run, t5, tmp_path):
    rows = [{"source": text, "target": text.upper()} for text in phrases(40)]
    general = write(tmp_path / "general.jsonl", [{"source": text, "target": text} for text in phrases(40, 7)])
    task, methods = "{seq2seq: {max_target_length: 8}}", "[{lora: {r: 2, target_modules: [q, v]}}]"
    run = whole_run(t5, task, rows, methods, f", forgetting: {general}")
    found = read_json(run / "lora" / "metrics.json")["forgetting"]
    assert found["before"]["value"] != found["after"]["value"]


def test_labels_have_no_perplexity(experiment):
    file = experiment("- full")
    text = file.read_text()
    data = next(line for line in text.splitlines() if line.startswith("data: ")).removeprefix("data: ")
    file.write_text(text.replace("evaluate: {", f"evaluate: {{forgetting: {data}, "))
    with pytest.raises(ExperimentError, match="perplexity is no measure of text_classification"):
        load_experiment(file)

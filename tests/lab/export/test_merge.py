"""Merged models: proved equal, in memory and shard by shard; a planted fault leaves nothing."""

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import trimtab
from trimtab.lab.commands import app
from trimtab.lab.errors import RunError
from trimtab.lab.export import memory, streaming
from trimtab.lab.export.merge import merge
from trimtab.lab.export.proof import Observed, ProofError, compare, prompts
from trimtab.lab.files import read_json

QV = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def merged(folder, out, **options) -> tuple[dict, str]:
    said = io.StringIO()
    told = merge(folder, out, Console(file=said, width=200), **options)
    return told, said.getvalue()


def logits(model, tokenizer, text="w1 w2 w3 w4 w5"):
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits


@pytest.mark.parametrize("by_shards", [False, True])
def test_a_generator_is_merged_and_proved(finish, tiny_generator, tmp_path, by_shards, monkeypatch):
    monkeypatch.setattr(streaming, "SHARD", 20_000)
    folder = finish("lora", QV)
    told, said = merged(folder, tmp_path / "out", by_shards=by_shards)
    assert told == read_json(tmp_path / "out" / "merge.json")
    proof = told["proof"]
    assert proof["relative"] < 1e-5
    assert proof["greedy"] == [8, 8]
    assert proof["choices"][0] == proof["choices"][1] == 12 * 4
    assert told["weight_error"]["layers"] == 6
    assert "same greedy answer: 8 of 8 prompts" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_generator)
    with_adapter = trimtab.PeftModel.from_pretrained(base, folder)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(with_adapter, tokenizer), logits(alone, tokenizer), atol=1e-5)
    with with_adapter.disable_adapter():
        assert not torch.allclose(logits(with_adapter, tokenizer), logits(alone, tokenizer), atol=1e-2)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2 if by_shards else len(shards) == 1
    assert all(file.stat().st_size < 25_000 for file in shards) or not by_shards
    assert (tmp_path / "out" / "generation_config.json").exists()
    assert not list(tmp_path.glob("**/.out*"))


@pytest.mark.parametrize("by_shards", [False, True])
def test_a_classifier_keeps_its_head(finish, tmp_path, by_shards):
    folder = finish("lora", {"r": 4, "target_modules": ["query", "value"]}, task="classes")
    told, said = merged(folder, tmp_path / "out", by_shards=by_shards)
    assert told["proof"]["choices"] == [12, 12]
    assert told["proof"]["greedy"] is None
    assert "same label or next token: 12 of 12" in said
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    head = load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert torch.equal(model.classifier.weight, head)
    assert list(model.config.id2label.values()) == ["high", "low", "middle"]


@pytest.mark.parametrize("kind", ["dora", "oft", "ia3"])
def test_other_methods_are_merged_layer_by_layer(finish, tmp_path, kind):
    options = {
        "dora": {**QV, "use_dora": True},
        "oft": {"oft_block_size": 4, "target_modules": ["q_proj"]},
        "ia3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    }[kind]
    told, _ = merged(finish("lora" if kind == "dora" else kind, options), tmp_path / "out", by_shards=True)
    assert told["proof"]["relative"] < 1e-4


def test_a_perturbed_tensor_is_refused_and_nothing_is_left(finish, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    folder, original = finish("lora", QV), streaming.write

    def faulty(model, place, *rest):
        errors = original(model, place, *rest)
        held = load_file(place / "model.safetensors")
        held["model.layers.1.mlp.down_proj.weight"][0] += 0.05
        save_file(held, place / "model.safetensors", metadata={"format": "pt"})
        return errors

    monkeypatch.setattr(streaming, "write", faulty)
    with pytest.raises(ProofError, match=r"(?s)does not compute what the fine-tuned model computes.*largest gap"):
        merged(folder, tmp_path / "out", by_shards=True)
    assert not list(tmp_path.glob("*out*"))
    told, _ = merged(folder, tmp_path / "out", by_shards=True, tolerance=10.0)
    assert told["proof"]["relative"] > 1e-3


def test_a_quantised_base_is_written_in_full(finish, tmp_path):
    told, said = merged(finish("lora", {**QV, "quantize": "int8"}), tmp_path / "out")
    assert told["dequantised"]
    assert told["proof"]["relative"] < 1e-4
    assert 0 < told["weight_error_if_quantised_again"]["mean"] < told["weight_error_if_quantised_again"]["largest"]
    assert "Quantised again, its weights would be off by" in said
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    with pytest.raises(RunError, match="quantised on loading cannot be merged shard by shard"):
        merged(finish("lora", {**QV, "quantize": "int8"}), tmp_path / "again", by_shards=True)


def test_what_cannot_be_merged_says_what_to_do(finish, tmp_path):
    for kind, options, said in (
        ("prompt_tuning", {"num_virtual_tokens": 2}, "acts on what the model reads.*--to peft"),
        ("full", {}, "is a whole model.*--to hf"),
    ):
        folder = finish(kind, options)
        with pytest.raises(RunError, match=said):
            merged(folder, tmp_path / "out")
        done = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "out")])
        assert done.exit_code == 2
        assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="is there already, and nothing is overwritten"):
        merged(finish("lora", QV), tmp_path / "full")


def test_rows_of_an_embedding_are_merged_by_shards_where_they_are_the_method(finish, tmp_path):
    folder = finish("trainable_tokens", {"token_indices": [5, 6], "target_modules": ["embed_tokens"]})
    told, _ = merged(folder, tmp_path / "out", by_shards=True)
    assert told["proof"]["relative"] < 1e-5
    beside = finish("lora", QV | {"trainable_token_indices": [5, 6]})
    with pytest.raises(RunError, match=r"embed_tokens: it trains rows of an embedding.*--in-memory"):
        merged(beside, tmp_path / "other", by_shards=True)
    told, _ = merged(beside, tmp_path / "other")
    assert told["proof"]["relative"] < 1e-5


def test_memory_is_that_of_the_files(finish, tiny_generator):
    from trimtab.lab.export.finished import Finished

    needs = memory.plan(Finished.read(finish("lora", QV)))
    held = {k: v for file in tiny_generator.glob("*.safetensors") for k, v in load_file(file).items()}
    bytes_ = [tensor.numel() * 4 for tensor in held.values()]
    assert needs["in_memory"] == round(1.2 * (sum(bytes_) + 4 * max(bytes_)))


def test_too_little_memory_takes_the_shards(finish, tmp_path, monkeypatch):
    plan = memory.plan
    monkeypatch.setattr(memory, "plan", lambda finished: plan(finished) | {"available": 1000})
    told, said = merged(finish("lora", QV), tmp_path / "out")
    assert told["by_shards"]
    assert "merges shard by shard" in said


def test_a_proof_measures_what_differs():
    first = Observed([np.array([1.0, 0.0]), np.array([0.0, 3.0])], [[1, 2], [3]])
    second = Observed([np.array([0.0, 0.5]), np.array([0.0, 3.0])], [[1, 2], [4]])
    proof = compare(first, second, 0.1)
    assert (proof.largest, proof.mean, proof.choices, proof.greedy) == (1.0, 0.375, (1, 2), (1, 2))
    assert proof.size == pytest.approx(math.sqrt(10 / 4))
    assert not proof.holds
    assert compare(first, first, 0.0).holds
    broken = Observed([np.array([np.nan, 0.0]), np.array([0.0, 3.0])], [])
    assert not compare(Observed(first.logits, []), broken, 1e9).holds


def test_prompts_end_where_answers_begin(tiny_generator):
    model = AutoModelForCausalLM.from_pretrained(tiny_generator)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}, {"input_ids": [5, 6, 7, 8]}]
    assert [row["input_ids"] for row in prompts(model, rows)] == [[5, 6, 7], [5, 6]]

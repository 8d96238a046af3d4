"""Exports, read back by the readers they are for."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

import trimtab
from trimtab.lab.commands import app
from trimtab.lab.errors import RunError
from trimtab.lab.export import adapters, gguf, hf
from trimtab.lab.export.adapters import VLLM_RANKS, export_peft, export_vllm, why_not_vllm
from trimtab.lab.export.proof import ProofError
from trimtab.lab.files import read_json

from .conftest import TEMPLATE

QV = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_folder_for_transformers_has_all_it_takes(finish, tmp_path):
    said = hf.export(finish("lora", QV), tmp_path / "out", quiet())
    assert "the chat template is there" in said
    assert any("generation ends with token 2" in line for line in said)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


def test_a_whole_model_is_handed_on(finish, tmp_path):
    said = hf.export(finish("full", {}), tmp_path / "out", quiet())
    assert "read back by Transformers:" in said
    assert read_json(tmp_path / "out" / "export.json")["proof"]["largest"] == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lora", QV), ("lora", {**QV, "quantize": "int8"}), ("prompt_tuning", {"num_virtual_tokens": 2})],
)
def test_peft_reads_the_adapter(finish, tmp_path, peft_reads, kind, options):
    said = export_peft(finish(kind, options), tmp_path / "out", quiet())
    assert "read back by peft:" in said
    proofs = read_json(tmp_path / "out" / "export.json")["proofs"]
    assert proofs.keys() == {"trimtab", "peft"}
    assert proofs["peft"]["relative"] < 1e-4


def test_a_method_that_peft_lacks_is_told(finish, tmp_path, peft_reads):
    said = export_peft(finish("reft", {"r": 2}), tmp_path / "out", quiet())
    assert any("has no REFT" in line for line in said)
    assert "read back by trimtab:" in said


def test_without_peft_it_is_said(finish, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    said = export_peft(finish("lora", QV), tmp_path / "out", quiet())
    assert any("PEFT is not installed here" in line for line in said)


def test_a_fault_in_the_adapter_is_refused(finish, tmp_path, monkeypatch):
    folder, original = finish("lora", QV), trimtab.PeftModel.save_pretrained

    def faulty(self, place, **options):
        next(p for n, p in self.named_parameters() if "lora_B" in n).data += 0.1
        original(self, place, **options)

    monkeypatch.setattr(trimtab.PeftModel, "save_pretrained", faulty)
    with pytest.raises(ProofError):
        export_peft(folder, tmp_path / "out", quiet())
    assert not list(tmp_path.glob("*out*"))


def test_vllm_gets_lora_as_it_is_and_the_command(finish, tmp_path, tiny_generator):
    said = "\n".join(export_vllm(finish("lora", QV), tmp_path / "out", quiet()))
    assert f"vllm serve {tiny_generator} --enable-lora --lora-modules lora={tmp_path / 'out'} --max-lora-rank 8" in said
    assert "converted" not in said
    assert read_json(tmp_path / "out" / "adapter_config.json")["r"] == 4


def test_another_method_is_converted_and_the_error_told(finish, tmp_path):
    folder = finish("loha", {"r": 2, "target_modules": ["q_proj", "v_proj"]})
    said = "\n".join(export_vllm(folder, tmp_path / "out", quiet()))
    config, told = (read_json(tmp_path / "out" / name) for name in ("adapter_config.json", "export.json"))
    assert config["peft_type"] == "LORA"
    assert told["converted_from"] == "loha"
    assert told["conversion_error"] < 0.05
    assert config["r"] in VLLM_RANKS
    assert f"converted to LoRA of rank {config['r']} (vLLM serves LoRA only, not LOHA)" in said
    assert why_not_vllm(trimtab.PeftConfig.from_pretrained(tmp_path / "out")) == []
    with pytest.raises(RunError, match=r"as LoRA of rank 1, up to .* would be lost"):
        export_vllm(folder, tmp_path / "other", quiet(), rank=1)
    assert not (tmp_path / "other").exists()


def test_what_vllm_refuses_is_told_by_name():
    config = trimtab.LoraConfig(r=1024, use_dora=True, modules_to_save=["lm_head"], rank_pattern={"q": 2}, bias="all")
    said = " ".join(why_not_vllm(config))
    for word in ("use_dora", "modules_to_save", "rank_pattern", "`bias`", "up to 512, not 1024"):
        assert word in said
    assert why_not_vllm(trimtab.LoraConfig(r=8, use_rslora=True)) == []


def test_a_classifier_is_not_for_vllm(finish, tmp_path):
    folder = finish("lora", {"r": 4, "target_modules": ["query"]}, task="classes")
    with pytest.raises(RunError, match=r"generates nothing.*--to hf"):
        export_vllm(folder, tmp_path / "out", quiet())


def test_a_gguf_adapter_moves_the_weights_as_llama_cpp_keeps_them(finish, tmp_path, tiny_generator):
    """Transformers turns llama.cpp's order of rows back: the update of the file, turned, is the adapter's."""
    reader = pytest.importorskip("gguf")
    folder = finish("lora", {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj", "down_proj"]})
    said = gguf.export(folder, tmp_path / "out", quiet())
    assert "6 updates" in said[0]
    file = reader.GGUFReader(tmp_path / "out" / "adapter.gguf")
    texts = {key: field.contents() for key, field in file.fields.items()}
    assert (texts["general.type"], texts["general.architecture"]) == ("adapter", "llama")
    assert (texts["adapter.type"], texts["adapter.lora.alpha"]) == ("lora", 12.0)
    held = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    base = AutoModelForCausalLM.from_pretrained(tiny_generator)
    model = trimtab.PeftModel.from_pretrained(base, folder)
    turn = {"attn_q": ("self_attn.q_proj", 4), "attn_k": ("self_attn.k_proj", 2), "ffn_down": ("mlp.down_proj", 0)}
    for name, (module, heads) in turn.items():
        a, b = held[f"blk.1.{name}.weight.lora_a"], held[f"blk.1.{name}.weight.lora_b"]
        assert a.shape[0] == b.shape[1] == 4
        found = 3.0 * b @ a
        if heads:  # (head, position, half) -> (head, half, position)
            found = found.reshape(heads, 4, 2, -1).transpose(0, 2, 1, 3).reshape(found.shape)
        layer = model.get_base_model().get_submodule(f"model.layers.1.{module}")
        wanted = (layer.merged_weight(["default"])[0] - layer.site.weight()).detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_fault_in_a_gguf_is_refused(finish, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    original = gguf.write

    def faulty(file, pairs, arch, config):
        pairs[0].B[0] += 1.0
        original(file, pairs, arch, config)
        pairs[0].B[0] -= 1.0

    monkeypatch.setattr(gguf, "write", faulty)
    with pytest.raises(ProofError, match="does not hold the adapter"):
        gguf.export(finish("lora", QV), tmp_path / "out", quiet())
    assert not list(tmp_path.glob("*out*"))


def test_gguf_of_other_methods_and_models(finish, tmp_path):
    pytest.importorskip("gguf")
    said = gguf.export(finish("loha", {"r": 2, "target_modules": ["q_proj"]}), tmp_path / "out", quiet(), rank=8)
    assert any("converted to LoRA" in line for line in said)
    with pytest.raises(RunError, match=r"layout of bert is not known here; there are gemma, .*llama"):
        gguf.architecture("bert")


def test_on_the_command_line(finish, tmp_path):
    folder = finish("lora", QV)
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--to", "vllm"])
    assert done.exit_code == 0, done.output
    assert "vllm serve" in done.stdout
    wrong = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "x"), "--to", "onnx"])
    assert wrong.exit_code == 2
    assert torch.get_num_threads() >= 1

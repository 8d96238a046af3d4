"""RandLoRA: what a file holds once, and sparse bases."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models

import trimtab
from trimtab import get_peft_model
from trimtab.methods.randlora import RandLoraConfig

OPTIONS = {"r": 3, "target_modules": ["q_proj", "down_proj"]}


def adapted(**options):
    return models.shake(get_peft_model(models.base("llama"), RandLoraConfig(**OPTIONS | options)), size=0.01).eval()


def test_the_bases_are_written_once_and_read_wherever_peft_writes_them(tmp_path):
    theirs = peft.get_peft_model(models.base("llama"), peft.RandLoraConfig(**OPTIONS))
    theirs.save_pretrained(tmp_path / "theirs")
    many = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    adapted().save_pretrained(tmp_path)
    once = load_file(tmp_path / "adapter_model.safetensors")
    assert once.keys() < many.keys()
    assert {k.rpartition(".")[2] for k in many.keys() - once.keys()} == {"randlora_A", "randlora_B"}
    key = next(iter(many.keys() - once.keys()))
    save_file(many | {key: torch.zeros(2, 2)}, tmp_path / "theirs" / "adapter_model.safetensors")
    with pytest.raises(trimtab.AdapterFileError, match=rf"{key}: the file has \(2, 2\)"):
        trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path / "theirs")


@pytest.mark.parametrize(("option", "least", "most"), [("sparse", 0.6, 0.7), ("very_sparse", 0.7, 0.8)])
def test_sparse_bases(option, least, most):
    layer = next(m for m in adapted(**{option: True}).modules() if hasattr(m, "randlora_B"))
    values, counts = layer.randlora_B.default.unique(return_counts=True)
    assert len(values) == 3
    assert values[1] == 0
    assert values[0] == -values[2]
    assert least < counts[1] / counts.sum() < most  # 2 in 3, and 1 - 1 / sqrt(16)


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 must .*; `randlora_dropout`=1.0 must be in \[0, 1\)"):
        RandLoraConfig(r=0, randlora_dropout=1.0)

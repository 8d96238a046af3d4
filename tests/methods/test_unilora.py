"""Uni-LoRA: the projection, files that hold it, and errors."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.unilora import UniLoraConfig, picks


def adapted(**options):
    config = UniLoraConfig(**{"r": 2, "theta_d_length": 7, "target_modules": ["0", "1"]} | options)
    torch.manual_seed(0)
    return models.shake(get_peft_model(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), config), size=1.0).eval()


def test_the_projection_uses_all_entries_equally_often_and_keeps_lengths():
    layers = list(adapted().base_model.model)
    index = torch.cat([getattr(m, f"unilora_indices_{k}").default.flatten() for m in layers for k in "AB"])
    scale = torch.cat([getattr(m, f"unilora_scales_{k}").default.flatten() for m in layers for k in "AB"])
    assert len(index) == 2 * (6 + 5 + 5 + 4)
    assert set(index.bincount().tolist()) == {5, 6}
    theta = torch.randn(7)
    torch.testing.assert_close((theta[index] * scale).norm(), theta.norm())


def test_a_file_with_the_projection_means_it(tmp_path):
    model, x = adapted(save_indices=True), torch.randn(3, 6)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, t in tensors.items():
        if "indices" in key:
            tensors[key] = (t + 1) % 7
    save_file(tensors | {"base_model.unilora_theta_d": tensors["base_model.unilora_theta_d"].roll(1)}, path)
    base = adapted().unload()
    again = trimtab.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(again(x), model(x))  # whatever the seed says


def test_what_cannot_be(monkeypatch):
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 must .*; `theta_d_length`=0 .*; `init_theta_d_bound`=0 must"):
        UniLoraConfig(r=0, theta_d_length=0, init_theta_d_bound=0)
    picks.cache_clear()
    monkeypatch.setitem(sys.modules, "numpy.random", None)
    with pytest.raises(trimtab.ConfigError, match="draws its projection with NumPy: pip install numpy"):
        adapted()

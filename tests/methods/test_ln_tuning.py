"""LN tuning: several at once, default targets, and layers that have nothing to train."""

import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.ln_tuning import LN_TARGETS, LNTuningConfig


def test_of_two_active_ones_the_last_acts():
    model, batch = get_peft_model(models.base("zoo"), LNTuningConfig(target_modules=["norm"])), models.inputs("zoo")
    model.add_adapter("other", LNTuningConfig(target_modules=["norm"]))
    model.set_requires_grad(["default", "other"])
    models.shake(model)
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = model(**batch)
    for pair in (["default", "other"], ["other", "default"]):
        model.base_model.set_adapter(pair)
        assert torch.equal(model(**batch), alone[pair[1]])
    assert not torch.equal(alone["default"], alone["other"])


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "bert", "t5", "bart", "opt"])
def test_default_targets_are_normalisations(name):
    model = get_peft_model(models.base(name), LNTuningConfig())
    assert {layer.site.kind for layer in model.base_model.layers} == {"norm"}
    found = {layer.path.rpartition(".")[2] for layer in model.base_model.layers}
    assert found <= set(LN_TARGETS[model.config.model_type])


def test_a_layer_without_a_weight():
    base = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False))
    with pytest.raises(trimtab.TargetError, match="1: this LayerNorm has no weight to adapt"):
        get_peft_model(base, LNTuningConfig(target_modules=["1"]))

"""KaSA: what the base loses, and what the loss gains."""

import copy

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.methods.kasa import KasaConfig, penalty

OPTIONS = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
BATCH = models.inputs("llama", 2)


def test_the_base_loses_its_smallest_singular_values_once():
    base = models.base("llama")
    before = base.model.layers[0].mlp.down_proj.weight.detach().clone()
    model = get_peft_model(base, LoraConfig(**OPTIONS, kasa_config=KasaConfig()))
    held = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    s, left = torch.linalg.svdvals(before), torch.linalg.svdvals(held.weight)
    torch.testing.assert_close(left[:-4], s[:-4])
    assert left[-4:].max() < 1e-5 < s[-4:].min()
    once = held.weight.detach().clone()
    model.add_adapter("other", LoraConfig(**OPTIONS, kasa_config={}))
    torch.testing.assert_close(held.weight, once, rtol=1e-5, atol=1e-6)


def test_the_loss_gains_what_peft_leaves_to_the_user():
    ours, theirs = (
        models.shake(library.get_peft_model(models.base("llama"), library.LoraConfig(**OPTIONS, kasa_config=config)))
        for library, config in ((trimtab, {"beta": 0.5, "gamma": 0.25}), (peft, peft.KasaConfig(beta=0.5, gamma=0.25)))
    )
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(penalty(ours, "default"), theirs.base_model._get_kasa_loss())
    plain = ours.eval()(**BATCH).loss
    trained = ours.train()(**BATCH).loss
    torch.testing.assert_close(trained - plain, penalty(ours, "default"), rtol=1e-4, atol=1e-4)
    trained.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters() if p.requires_grad)


def test_what_cannot_be():
    base = models.base("llama")
    before = copy.deepcopy(base.state_dict())
    wrong = {
        "`kasa_config`: `gamma`=-1 must not be negative": {"kasa_config": {"gamma": -1}},
        "`kasa_config` has no 'delta'; there are 'beta', 'gamma'": {"kasa_config": {"delta": 1}},
        "`kasa_config`=True must be a KasaConfig, or a dict of its fields": {"kasa_config": True},
        "without its `r`=16 smallest of 16 singular values nothing is left": {"kasa_config": {}, "r": 16},
        "'pissa' cannot be used: KaSA's base": {"kasa_config": {}, "init_lora_weights": "pissa"},
        "asks for .*Dora.* and .*Kasa|asks for .*Kasa.* and .*Dora": {"kasa_config": {}, "use_dora": True},
    }
    for message, options in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            get_peft_model(base, LoraConfig(**OPTIONS | options))
    assert all(torch.equal(t, before[k]) for k, t in base.state_dict().items())

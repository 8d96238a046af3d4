"""Intruder dimensions: the adapter that is left is PEFT's, and the paper's."""

import peft
import pytest
import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension as theirs
from torch import nn

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.intruders import reduce_intruder_dimension

OPTIONS = {"r": 2, "lora_alpha": 4, "target_modules": ["0", "1"]}


def pair(**extra):
    made = {}
    for library in (trimtab, peft):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 7), nn.Linear(7, 3))
        made[library] = library.get_peft_model(net, library.LoraConfig(**OPTIONS | extra))
    for name, p in made[trimtab].named_parameters():
        if p.requires_grad:
            p.data = 0.6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name) + ord(name[-8])))
    made[peft].load_state_dict(made[trimtab].state_dict())
    return made[trimtab], made[peft]


@pytest.mark.parametrize("options", [
    {}, {"threshold_epsilon": 0.9}, {"threshold_epsilon": 0.9, "top_k": 1, "mitigation_lambda": 0.0},
    {"threshold_epsilon": 0.8, "mitigation_lambda": 0.25}, {"threshold_epsilon": 0.1},
])  # fmt: skip
@torch.no_grad()
def test_what_is_left_is_what_peft_leaves(options):
    ours, other = pair()
    x, before = torch.randn(5, 8), []
    for model, reduce in ((ours, reduce_intruder_dimension), (other, theirs)):
        before.append(model(x))
        reduce(model, logging_sink=None, **options)
        assert model.active_adapters == ["intruder_reduced"]
    torch.testing.assert_close(ours(x), other(x), rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours(x), before[0], atol=1e-4) == (options.get("threshold_epsilon", 0.5) < 0.8)
    ours.set_adapter("default")
    assert torch.equal(ours(x), before[0])
    assert ours.peft_config["intruder_reduced"].r == 2


@torch.no_grad()
def test_an_intruder_is_taken_out_of_the_weight():
    """With enough rank, W' loses the singular value itself."""
    model, _ = pair(r=6, target_modules=["0"])
    said = []
    layer = model.base_model.model[0]
    u, s, v = torch.linalg.svd(layer.effective()[0], full_matrices=False)
    reduce_intruder_dimension(model, threshold_epsilon=1.0, top_k=1, mitigation_lambda=0.0, logging_sink=said.append)
    assert said == ["0: 1 intruders"]
    torch.testing.assert_close(layer.effective()[0], (u[:, 1:] * s[1:]) @ v[1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_trained_besides_is_kept():
    model, _ = pair(modules_to_save=["2"], lora_bias=True)
    reduce_intruder_dimension(model, threshold_epsilon=0.9, logging_sink=None)
    head = model.base_model.model[2].modules_to_save
    assert torch.equal(head["intruder_reduced"].weight, head["default"].weight)
    up = model.base_model.model[0].lora_B
    assert torch.equal(up["intruder_reduced"].bias, up["default"].bias)


def test_what_cannot_be():
    model, _ = pair()
    dora = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"], use_dora=True))
    wrong = {
        "`mitigation_lambda`=2: one dimension": lambda: reduce_intruder_dimension(model, mitigation_lambda=2),
        "no adapter is called 'x'": lambda: reduce_intruder_dimension(model, "x"),
        "'default' is no plain LoRA on one matrix at '0'": lambda: reduce_intruder_dimension(dora),
        "already has an adapter 'default'": lambda: reduce_intruder_dimension(model, new_adapter_name="default"),
    }
    for message, act in wrong.items():
        with pytest.raises(trimtab.TrimtabError, match=message):
            act()
    assert list(model.peft_config) == ["default"]

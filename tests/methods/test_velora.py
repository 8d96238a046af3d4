"""VeLoRA: gradients are PEFT's, and inputs are not kept."""

import peft
import pytest
import torch
from torch import nn

import trimtab
from trimtab import LoraConfig, get_peft_model

OPTIONS = {"r": 2, "lora_alpha": 4, "init_lora_weights": False, "target_modules": ["0"]}


def made(library, **options):
    torch.manual_seed(0)
    config = library.LoraConfig(**OPTIONS, velora_config=options)
    return library.get_peft_model(nn.Sequential(nn.Linear(8, 6)), config).train()


@pytest.mark.parametrize("kind", ["batch_average", "batch_average_once", "random"])
@pytest.mark.parametrize("groups", [2, 3, 64])
def test_gradients_are_those_of_peft(kind, groups):
    ours, theirs = (made(library, num_groups=groups, init_type=kind, scale=0.7) for library in (trimtab, peft))
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    for _ in range(2):
        x, g = torch.randn(3, 5, 8), torch.randn(3, 5, 6)
        found = []
        for model in (ours, theirs):
            model.zero_grad()
            given = x.clone().requires_grad_()
            model(given).backward(g)
            found.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None} | {"x": given.grad})
        for key, gradient in found[1].items():
            torch.testing.assert_close(found[0][key], gradient, rtol=1e-4, atol=1e-5)
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], tensor)
    plain = get_peft_model(nn.Sequential(nn.Linear(8, 6)), LoraConfig(**OPTIONS))
    plain.load_state_dict({k: t for k, t in ours.state_dict().items() if "velora" not in k})
    plain(x).backward(g)
    exact = [p.grad for k, p in plain.named_parameters() if "lora_A" in k]
    assert (exact[0] - found[0]["base_model.model.0.lora_A.default.weight"]).abs().max() > 0.1
    torch.testing.assert_close(ours(x), plain(x))


def test_inputs_are_not_kept():
    x = torch.randn(3, 5, 8)
    for options, times in (({"velora_config": {"num_groups": 2}}, 0), ({}, 1)):
        model, kept = get_peft_model(nn.Sequential(nn.Linear(8, 6)), LoraConfig(**OPTIONS | options)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            model(x)
        assert sum(t.numel() >= x.numel() for t in kept) == times


def test_what_cannot_be():
    wrong = {
        "`velora_config`: `num_groups`=0 must be at least 1": {"num_groups": 0},
        "`velora_config`: `init_type`='mean' is unknown; choose one of 'batch_average'": {"init_type": "mean"},
    }
    for message, options in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            LoraConfig(velora_config=options)
    with pytest.raises(
        trimtab.ConfigError, match="VeLoRA compresses the inputs of A, which embedding layers do not have"
    ):
        get_peft_model(nn.Sequential(nn.Embedding(3, 4)), LoraConfig(target_modules=["0"], velora_config={}))

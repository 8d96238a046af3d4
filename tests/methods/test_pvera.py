"""PVeRA: what is sampled, when, and from which seed."""

import copy

import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.pvera import PveraConfig


def adapted(**options):
    config = PveraConfig(**{"r": 2, "target_modules": ["0"]} | options)
    torch.manual_seed(0)
    return models.shake(get_peft_model(nn.Sequential(nn.Linear(6, 5)), config), size=1.0)


def test_features_have_the_mean_and_the_variance_that_are_learnt():
    model, x = adapted(), torch.randn(1, 6)
    layer = model.base_model.model[0]
    b, d = (getattr(layer, f"pvera_lambda_{k}").default for k in "bd")
    with torch.no_grad():
        h = d * (x @ layer.pvera_A.default.T)
        mean, variance = h[0, :2], h[0, 2:].exp()
        up = b[:, None] * layer.pvera_B.default
        y = model.eval()(x)
        torch.testing.assert_close(y - layer.base_layer(x), (up @ mean)[None])
        samples = model.train()(x.expand(40_000, 6))  # every row its own
    torch.testing.assert_close(samples.mean(dim=0), y[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(samples.std(dim=0), (up.square() @ variance).sqrt(), rtol=0.05, atol=0.05)


def test_samples_come_from_their_own_seed():
    x = torch.randn(3, 6)
    one, other = (adapted(generator_seed=3).train() for _ in range(2))
    first = one(x)
    torch.manual_seed(99)
    torch.testing.assert_close(other(x), first)
    twin = copy.deepcopy(one)
    second = one(x)
    assert not torch.equal(second, first)
    assert torch.equal(twin(x), second)
    assert not torch.equal(adapted(generator_seed=4).train()(x), first)


def test_sampling_at_inference_is_asked_for_and_a_merge_means_the_mean():
    x = torch.randn(3, 6)
    model, plain = adapted(sample_at_inference=True).eval(), adapted().eval()
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(model(x), model(x))
    torch.testing.assert_close(model.merge_and_unload()(x), plain(x))


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 must .*; `pvera_dropout`=2 must be in \[0, 1\)"):
        PveraConfig(r=0, pvera_dropout=2)
    for target, kind in (("gconv", "grouped convolution"), ("mha", "attention layer")):
        with pytest.raises(trimtab.ConfigError, match=f"sampled for every position of the input, which a {kind} does"):
            get_peft_model(models.base("zoo"), PveraConfig(target_modules=[target]))

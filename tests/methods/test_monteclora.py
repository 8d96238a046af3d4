"""MonteCLoRA: what is drawn, and what the loss gains."""

import peft
import pytest
import torch
from tests import models
from torch import nn
from torch.distributions import Dirichlet, kl_divergence

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.methods import monteclora

OPTIONS = {"r": 3, "target_modules": ["0"], "init_lora_weights": False}


def made(inp=5, **options):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(inp, 6)), LoraConfig(**OPTIONS, monteclora_config=options)).train()
    return models.shake(model), model.base_model.layers[0].adapters["default"]


@pytest.fixture
def theirs():
    config = peft.LoraConfig(**OPTIONS, monteclora_config=peft.MontecloraConfig(num_samples=4))
    model = peft.get_peft_model(nn.Sequential(nn.Linear(5, 6)), config)
    return model.base_model.model[0].lora_monteclora_sampler["default"]


@torch.no_grad()
def test_draws_are_those_of_the_distributions(theirs, monkeypatch):
    _, a = made(num_samples=4)
    v = torch.stack([monteclora.draw(a)[0] for _ in range(4000)]) / (2 * a.s).exp()
    torch.testing.assert_close(v.mean(0), torch.full((3,), 3.0), rtol=0.1, atol=0)  # chi^2 of 3 degrees
    torch.testing.assert_close(v.var(0), torch.full((3,), 6.0), rtol=0.2, atol=0)
    z = torch.randn(4)
    monkeypatch.setattr(torch, "randn_like", lambda t: z)
    expected = theirs.dirichlet_reparameterization(a.e.exp(), z).softmax(0)
    torch.testing.assert_close(monteclora.draw(a)[1], expected)


@torch.no_grad()
def test_a_is_moved_by_a_sum_of_normals_and_only_in_training(monkeypatch):
    model, a = made(20000, num_samples=3, sample_scaler=0.5)
    v, p = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([0.6, 0.2, 0.2])
    monkeypatch.setattr(monteclora, "draw", lambda a: (v, p))
    moved = a.method.factors(a)[0] - a.A
    torch.testing.assert_close(moved.std(1), 0.5 * v.sqrt() * p.norm(), rtol=0.03, atol=0)
    assert moved.mean(1).abs().max() < 0.05
    assert torch.equal(a.method.factors(a.to(torch.float32))[0], a.A)
    model.eval()
    assert torch.equal(a.method.factors(a)[0], a.A)


def test_the_loss_gains_the_divergences_of_peft_with_dirichlets_put_right(theirs, monkeypatch):
    model, a = made(num_samples=4, use_entropy=True, kl_loss_weight=0.5)
    v, p = torch.tensor([1.0, 4.0, 0.5]), torch.tensor([0.6, 0.2, 0.1, 0.1])
    monkeypatch.setattr(monteclora, "draw", lambda a: (v, p))
    alpha, prior = a.e.exp(), torch.full((4,), 0.1)
    expected = theirs.wishart_kl(a.s.exp().diag()) + theirs.multivariate_kl(v.diag())
    dirichlet = kl_divergence(Dirichlet(alpha), Dirichlet(prior))
    found = monteclora.penalty(model, "default")
    torch.testing.assert_close(found, 0.5 * (expected + dirichlet) + p.square().sum())
    assert theirs.dirichlet_kl(alpha) < 0 < dirichlet, "PEFT has this sum right now: the difference can be struck out"


def test_a_model_of_two_layers_trains_with_the_mean():
    config = LoraConfig(target_modules=["q_proj"], monteclora_config={"kl_loss_weight": 0.1}, task_type="CAUSAL_LM")
    model = get_peft_model(models.base("llama"), config)
    batch = models.inputs("llama")
    plain = model.eval()(**batch).loss
    loss = model.train()(**batch).loss
    assert loss > plain + 0.5
    loss.backward()
    learnt = [p.grad for k, p in model.named_parameters() if k.endswith(("std_prior", "expert_weights_prior"))]
    assert len(learnt) == 4
    assert all(g.isfinite().all() and g.any() for g in learnt)


def test_what_cannot_be():
    wrong = {
        "`monteclora_config`: `num_samples`=0 must be at least 1": {"num_samples": 0},
        "`monteclora_config`: `dirichlet_prior`=0 must be above 0": {"dirichlet_prior": 0},
    }
    for message, options in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            LoraConfig(monteclora_config=options)

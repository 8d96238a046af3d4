"""PSOFT beyond the table: its subspace, the seed, the bound on Q, and what is refused."""

import pytest
import torch
from tests import models

import trimtab

PsoftConfig = trimtab.CONFIGS["PSOFT"]


def layer_with(**options: object) -> torch.nn.Module:
    config = PsoftConfig(r=3, target_modules=["lin0"], **options)
    return trimtab.get_peft_model(models.base("zoo"), config).base_model.model.lin0


@pytest.mark.parametrize("init", ["psoft_init", "pissa_init"])
def test_only_the_principal_part_moves(init):
    layer = models.shake(layer_with(ab_svd_init=init))
    u, _, v = torch.linalg.svd(layer.base_layer.weight)
    delta = layer.get_delta_weight("default")
    assert delta.abs().max() > 1e-2
    torch.testing.assert_close(u[:, :3] @ u[:, :3].T @ delta @ v[:3].T @ v[:3], delta)


def test_a_random_svd_is_the_same_again_and_leaves_torchs_generator_alone():
    parts = []
    for seed in (0, 0, 1):
        base = models.base("zoo")
        config = PsoftConfig(
            r=3, target_modules=["lin0"], psoft_svd="lowrank", psoft_svd_lowrank_niter=0, random_seed=seed
        )
        before = torch.random.get_rng_state()
        parts.append(trimtab.get_peft_model(base, config).base_model.model.lin0.adapters["default"].A)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(parts[0], parts[1])
    assert (parts[0] - parts[2]).abs().max() > 1e-3


def test_a_bound_on_q_lets_it_leave_zero():
    layer = layer_with(use_cayley_neumann=True, cayley_neumann_eps=0.5)
    layer(torch.randn(4, 12)).pow(2).sum().backward()
    gradient = layer.psoft_R["default"].weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_scale_strengthens_and_switches_off():
    layer = models.shake(layer_with(psoft_alpha=9))
    delta = layer.get_delta_weight("default")
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(layer.get_delta_weight("default"), delta / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 13}, "lin0: `r`=13 is above the 12 singular values of this weight"),
        ({"r": 0}, "PsoftConfig: `r`=0 must be at least 1"),
        ({"r": 1}, "`r`=1 leaves nothing to rotate; take at least 2"),
        ({"psoft_dropout": 1.5}, r"`psoft_dropout`=1.5 must be in \[0, 1\)"),
        ({"ab_svd_init": "x"}, "`ab_svd_init`='x' is unknown; choose 'psoft_init' or 'pissa_init'"),
        ({"psoft_svd": "x"}, "`psoft_svd`='x' is unknown; choose 'full' or 'lowrank'"),
        ({"psoft_svd_lowrank_niter": -1}, "`psoft_svd_lowrank_niter`=-1 must not be negative"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 1}, "=1 must be at least 2: one is no rotation"),
        ({"cayley_neumann_eps": 1.5}, r"`cayley_neumann_eps`=1.5 must be in \(0, 1\), or None"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.get_peft_model(models.base("zoo"), PsoftConfig(**({"r": 3, "target_modules": ["lin0"]} | options)))

"""OFT, BOFT, HRA, RoAd and PSOFT: what they keep as it is, and what cannot be."""

import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab.methods.boft import BOFTConfig
from trimtab.methods.hra import HRAConfig
from trimtab.methods.oft import OFTConfig
from trimtab.methods.psoft import PsoftConfig
from trimtab.methods.road import RoadConfig

TARGET = {"target_modules": ["0"]}


def layer(config, inp=8, out=8):
    torch.manual_seed(0)
    return models.shake(trimtab.get_peft_model(nn.Sequential(nn.Linear(inp, out)), config)).base_model.model[0]


@pytest.mark.parametrize(
    "config",
    [
        OFTConfig(oft_block_size=4, use_cayley_neumann=False, **TARGET),
        HRAConfig(r=3, **TARGET),
        BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=3, **TARGET),
    ],
    ids=["OFT", "HRA", "BOFT"],
)
@torch.no_grad()
def test_angles_between_the_rows_of_a_weight_stay(config):
    held = layer(config)
    if "boft_s" in held._modules:
        held.boft_s["default"].fill_(1)
    old, new = held.base_layer.weight, held.effective()[0]
    assert (new - old).abs().max() > 0.1
    torch.testing.assert_close(new @ new.T, old @ old.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_butterfly_factors_reach_every_input():
    held = layer(BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=3, **TARGET))
    held.base_layer.weight.copy_(torch.eye(8))
    assert (held.effective()[0].abs() > 1e-6).all()
    alone = layer(BOFTConfig(boft_block_size=2, **TARGET))
    alone.base_layer.weight.copy_(torch.eye(8))
    assert ((alone.effective()[0].abs() > 1e-6).sum(dim=1) == 2).all()


@torch.no_grad()
def test_coft_bounds_each_block():
    held = layer(OFTConfig(oft_block_size=4, coft=True, eps=1e-3, use_cayley_neumann=False, **TARGET))
    change = (held.effective()[0] - held.base_layer.weight).norm() / held.base_layer.weight.norm()
    assert 1e-4 < change < 2.1e-3


@pytest.mark.parametrize(
    "config", [OFTConfig(oft_block_size=4, module_dropout=0.5, **TARGET), BOFTConfig(boft_dropout=0.5, **TARGET)]
)
def test_dropout_leaves_blocks_as_they_are_in_training(config):
    held, x = layer(config), torch.randn(2, 8)
    assert torch.equal(held.eval()(x), held(x))
    held.train()
    assert len({tuple(held(x).flatten().tolist()) for _ in range(20)}) > 1


@torch.no_grad()
def test_psoft_moves_the_principal_subspace_only():
    held = layer(PsoftConfig(r=3, **TARGET))
    change = held.effective()[0] - held.base_layer.weight
    u, _, v = torch.linalg.svd(held.base_layer.weight)
    torch.testing.assert_close(u[:, :3] @ u[:, :3].T @ change @ v[:3].T @ v[:3], change, rtol=1e-4, atol=1e-5)


WRONG = {
    r"`r`=0 and `oft_block_size`=0: one must be above 0": lambda: OFTConfig(oft_block_size=0),
    r"`r`=2 and `oft_block_size`=4: one .*; `module_dropout`=1 ": lambda: OFTConfig(
        r=2, oft_block_size=4, module_dropout=1
    ),
    r"`oft_block_size`=3 must divide the 8 inputs": lambda: layer(OFTConfig(oft_block_size=3, **TARGET)),
    r"`boft_block_size`=0 and .*; `boft_n_butterfly_factor`=0": lambda: BOFTConfig(
        boft_block_size=0, boft_n_butterfly_factor=0
    ),
    r"`boft_block_size`=3 must divide the 8 inputs": lambda: layer(BOFTConfig(boft_block_size=3, **TARGET)),
    r"`boft_n_butterfly_factor`=3 .* multiples of 16 ": lambda: layer(BOFTConfig(boft_n_butterfly_factor=3, **TARGET)),
    r"`r`=0 must be at least 1": lambda: HRAConfig(r=0),
    r"`variant`='x' is unknown.*; `group_size`=3 must be even": lambda: RoadConfig(variant="x", group_size=3),
    r"`group_size`=6 must divide the 8 outputs": lambda: layer(RoadConfig(group_size=6, **TARGET)),
    r"`r`=0 .*; `ab_svd_init`='x' .*; `cayley_neumann_eps`=2": lambda: PsoftConfig(
        r=0, ab_svd_init="x", cayley_neumann_eps=2
    ),
    r"`r`=9 is more than the 8 directions": lambda: layer(PsoftConfig(r=9, **TARGET)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be(message):
    with pytest.raises(trimtab.ConfigError, match=message):
        WRONG[message]()

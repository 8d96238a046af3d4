"""HRA beyond the table: Gram and Schmidt, and what is refused."""

import pytest
import torch
from tests import models

import trimtab

HRAConfig = trimtab.CONFIGS["HRA"]


def test_orthogonal_vectors_change_the_weight_by_rank_r():
    config = HRAConfig(r=3, apply_GS=True, target_modules=["lin0"])
    layer = models.shake(trimtab.get_peft_model(models.base("zoo"), config)).base_model.model.lin0
    w, u = layer.base_layer.weight, torch.linalg.qr(layer.hra_u["default"])[0]
    torch.testing.assert_close(layer.effective()[0], w @ (torch.eye(12) - 2 * u @ u.T))
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default").double(), rtol=1e-5) == 3


@pytest.mark.parametrize("vector", ["zero", "equal"])
def test_no_start_makes_a_nan(vector):
    config = HRAConfig(r=4, apply_GS=vector == "equal", target_modules=["lin0"])
    layer = trimtab.get_peft_model(models.base("zoo"), config).base_model.model.lin0
    u = layer.hra_u["default"].data
    u[:, 1] = 0 if vector == "zero" else u[:, 0]
    assert layer(torch.randn(3, 12)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "HRAConfig: `r`=0 must be at least 1"),
        ({"r": 13, "apply_GS": True}, "lin0: `r`=13 vectors of 12 features cannot be orthogonal; take fewer, or no"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.get_peft_model(models.base("zoo"), HRAConfig(target_modules=["lin0"], **options))

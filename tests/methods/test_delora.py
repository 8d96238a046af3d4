"""DeLoRA beyond the table: what its boundary promises, and what its configuration refuses."""

import pytest
import torch
from tests import models

import trimtab

DeloraConfig = trimtab.CONFIGS["DELORA"]


@pytest.mark.parametrize("size", [0.1, 1e4])
def test_the_boundary_holds_however_far_a_and_b_move(size):
    config = DeloraConfig(r=3, delora_lambda=0.5, target_modules=["lin0", "conv2"])
    model = models.shake(models.shake(trimtab.get_peft_model(models.base("zoo"), config), 5, size, "_A"), 6, size, "_B")
    for layer in model.base_model.layers:
        w = layer.base_layer.weight
        assert 0.01 < layer.get_delta_weight("default").norm() / w.norm() <= 0.5


def test_the_norms_are_those_of_the_start():
    model = trimtab.get_peft_model(models.base("zoo"), DeloraConfig(r=3, target_modules=["lin0"]))
    (layer,) = model.base_model.layers
    norms = layer.delora_w_norm["default"].clone()
    torch.testing.assert_close(norms, layer.base_layer.weight.norm(dim=0))
    models.shake(model)
    assert torch.equal(layer.delora_w_norm["default"], norms)
    before = layer.get_delta_weight("default")
    layer.base_layer.weight.data.mul_(2)
    torch.testing.assert_close(layer.get_delta_weight("default"), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"r": 0, "module_dropout": 1.5},
            r"DeloraConfig: `r`=0 must be at least 1; `module_dropout`=1.5 must be in \[0",
        ),
        ({"bias": "lora_only"}, "choose one of 'none', 'all', 'delora_only'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        DeloraConfig(**options)

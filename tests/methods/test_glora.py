"""GLoRA beyond the table: the weight that its bias is coupled to, and what its configuration refuses."""

import pytest
import torch
from tests import models
from torch import nn

import trimtab

GloraConfig = trimtab.CONFIGS["GLORA"]


def test_the_bias_is_coupled_to_the_weight_that_comes_in():
    """So merging the adapter before it changes nothing, though the base weight is another one then."""
    config = GloraConfig(r=2, target_modules=["0"])
    model = trimtab.get_peft_model(nn.Sequential(nn.Linear(6, 5)), config)
    model.add_adapter("other", config)
    model.set_requires_grad(["default", "other"])
    models.shake(model, size=0.5)
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(3, 6)
    y = model(x)
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(x), y)
    model.merge_adapter(["other"])
    torch.testing.assert_close(model(x), y)


def test_numbers_a_row_need_no_weight():
    config = GloraConfig(config_A_B="vector", target_modules=["lin0", "conv1"])
    layers = trimtab.get_peft_model(models.base("zoo"), config).base_model.layers
    assert [layer.plan(("default",)).route for layer in layers] == ["shortcut", "definition"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "config_C": "constant"}, "`config_C`='constant' is unknown; choose one of 'lora', 'vector', 'none'"),
        ({"r": 0}, "`r`=0 must be at least 1"),
        ({"config_A_B": "LoRA"}, "`config_A_B`='LoRA' is unknown"),
        ({"config_D_E": "lora"}, "`config_D_E`='lora' is unknown; choose one of 'vector', 'constant', 'none'"),
        (
            {"config_A_B": "none", "config_C": "none", "config_D_E": "none"},
            "'config_A_B', 'config_C', 'config_D_E' are all 'none', which leaves nothing to train",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        GloraConfig(**options)

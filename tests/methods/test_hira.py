"""HiRA beyond the table: dropout, and what its configuration refuses."""

import pytest
import torch
from tests import models
from torch import nn

import trimtab


def trained(target: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """A model with HiRA on one layer, and that layer."""
    config = trimtab.CONFIGS["HIRA"](r=4, target_modules=[target], **options)
    model = models.shake(trimtab.get_peft_model(models.base("zoo"), config))
    return model, model.get_submodule(f"base_model.model.{target}")


def test_dropout_acts_on_what_the_update_reads():
    model, layer = trained("lin0", hira_dropout=0.5)
    x = torch.randn(7, 12)
    model.train()
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(x, 0.5)
    w = layer.base_layer.weight
    update = w * (layer.hira_B["default"] @ layer.hira_A["default"])
    torch.testing.assert_close(y, layer.base_layer(x) + dropped @ update.T)


@pytest.mark.parametrize("kind", ["HIRA", "LORA", "VERA"])
def test_dropout_leaves_the_indices_of_an_embedding_alone(kind):
    dropout = {f"{kind.lower()}_dropout": 0.5}
    config = trimtab.CONFIGS[kind](r=4, target_modules=["emb"], **dropout)
    layer = models.shake(trimtab.get_peft_model(models.base("zoo"), config)).base_model.model.emb
    ids = torch.arange(30)
    assert torch.equal(layer.train()(ids), layer.eval()(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "HiraConfig: `r`=0 must be at least 1"),
        ({"hira_dropout": 1}, r"`hira_dropout`=1 must be in \[0, 1\)"),
        ({"init_weights": "x"}, "`init_weights`='x' is unknown; choose True, False or 'gaussian'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.CONFIGS["HIRA"](**options)

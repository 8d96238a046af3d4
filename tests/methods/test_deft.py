"""DEFT beyond the table: what its projection leaves, its dropout, and what its configuration refuses."""

import pytest
import torch
import torch.nn.functional as F
from tests import models
from torch import Tensor, nn

import trimtab

DeftConfig = trimtab.CONFIGS["DEFT"]


def trained(target: str, **options: object) -> tuple[nn.Module, Tensor, Tensor, Tensor | None]:
    """A layer with DEFT, with its W, P and R."""
    model = models.shake(trimtab.get_peft_model(models.base("zoo"), DeftConfig(target_modules=[target], **options)))
    layer = model.get_submodule(f"base_model.model.{target}")
    r = getattr(layer, "deft_R", {"default": None})["default"]
    return layer, layer.base_layer.weight, layer.deft_P["default"], r


def test_qr_leaves_nothing_in_the_subspace():
    layer, _, p, _ = trained("lin0", r=3, para=True, decomposition_method="qr")
    w, _ = layer.effective()
    assert (torch.linalg.qr(p)[0].T @ w).abs().max() < 1e-6


def test_only_what_is_written_is_scaled_and_dropped():
    layer, w, p, r = trained("lin0", r=2, alpha=6, deft_dropout=0.5)
    x = torch.randn(7, 12)
    layer.train()
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    expected = layer.base_layer(x) - x @ (p @ p.relu().T @ w).T + 3 * dropped @ (p @ r).T
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "alpha": 0}, "DeftConfig: `r`=0 must be at least 1; `alpha`=0 would leave R without effect"),
        ({"decomposition_method": "svd"}, "`decomposition_method`='svd' is unknown; choose 'relu' or 'qr'"),
        ({"init_scale": -1.0}, r"`init_scale`=-1\.0 must not be negative"),
        ({"deft_dropout": 1}, r"`deft_dropout`=1 must be in \[0, 1\)"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        DeftConfig(**options)

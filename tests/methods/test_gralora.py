"""GraLoRA beyond the table: its rank, the starts of its blocks, and what it refuses."""

import pytest
import torch
from tests import models

import trimtab

GraloraConfig = trimtab.CONFIGS["GRALORA"]


def layer_of(**options):
    config = GraloraConfig(target_modules=["lin0"], **options)
    return models.shake(trimtab.get_peft_model(models.base("zoo"), config)).base_model.layers[0]


@pytest.mark.parametrize(("k", "rank"), [(1, 4), (2, 8), (4, 12)])  # lin0 is 20 by 12
def test_the_rank_grows_with_the_blocks(k, rank):
    layer = layer_of(r=4, gralora_k=k)
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default")) == rank
    assert sum(p.numel() for _, p in layer.parameters_of("default")) == 4 * (20 + 12)


def test_blocks_start_like_linear_layers_of_their_size():
    config = GraloraConfig(target_modules=["lin0"], r=64, gralora_k=2, init_weights=False)
    (layer,) = trimtab.get_peft_model(models.base("zoo"), config).base_model.layers
    for name, inputs in (("gralora_A", 6), ("gralora_B", 64)):
        largest = float(getattr(layer, name)["default"].abs().max())
        assert 0.9 * inputs**-0.5 < largest <= inputs**-0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "hybrid_r": -1}, "GraloraConfig: `r`=0 must be at least 1; `hybrid_r`=-1 must be at least 0"),
        ({"r": 5}, "`r`=5 must be a multiple of `gralora_k`=2: blocks share it evenly"),
        ({"gralora_k": 0}, "`gralora_k`=0 must be at least 1"),
        ({"gralora_dropout": 1}, r"`gralora_dropout`=1 must be in \[0, 1\)"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        GraloraConfig(**options)


def test_a_weight_that_k_does_not_divide():
    with pytest.raises(trimtab.ConfigError, match=r"lin0: `gralora_k`=3 must divide .* this one is 20 by 12"):
        layer_of(r=6, gralora_k=3)

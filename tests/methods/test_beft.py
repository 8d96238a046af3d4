"""BEFT: layers that have no bias."""

import pytest
import torch
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.beft import BeftConfig


def test_a_norm_without_a_bias_is_shifted():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), BeftConfig(target_modules=["1"]))
    x = torch.randn(3, 4)
    before = model(x)
    model.base_model.layers[0].adapters["default"].d.data += 2
    torch.testing.assert_close(model(x), before + 2)
    with pytest.raises(trimtab.MergeError, match=r"1: merging .default. gives a bias, and the layer has none"):
        model.merge_adapter()


def test_an_attention_without_a_bias():
    base = nn.Sequential(nn.MultiheadAttention(4, 2, bias=False))
    with pytest.raises(trimtab.TrimtabError, match="0: this attention layer has no bias, and cannot be given one"):
        get_peft_model(base, BeftConfig(target_modules=["0"]))

"""BD-LoRA: the blocks, and which modules have them."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.methods.bdlora import BdLoraConfig, spread


def test_blocks_stand_on_the_diagonal():
    blocks = torch.arange(1.0, 13).view(4, 3)
    assert torch.equal(spread(blocks, 2), torch.block_diag(*blocks.chunk(2)))
    kernel = torch.randn(6, 2, 3, 3)
    full = spread(kernel, 3)
    for i in range(9):
        here = (..., i // 3, i % 3)
        assert torch.equal(full[here], torch.block_diag(*kernel[here].chunk(3)))


def test_a_shard_computes_its_block_alone():
    options = BdLoraConfig(target_modules_bd_b=["q_proj"], nblocks=2)
    model = models.shake(
        get_peft_model(models.base("llama"), LoraConfig(target_modules=["q_proj"], use_bdlora=options))
    )
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 16)
    down = x @ layer.lora_A["default"].weight.T
    shards = [h @ b.T for h, b in zip(down.chunk(2, 1), layer.lora_B["default"].weight.chunk(2), strict=True)]
    torch.testing.assert_close(layer(x) - layer.base_layer(x), torch.cat(shards, 1))


def test_what_cannot_be():
    wrong = {
        "`nblocks`=0 must be at least 1": {"nblocks": 0},
        "'q_proj' cannot be block-diagonal in both A and B": {f"target_modules_bd_{side}": ["q_proj"] for side in "ab"},
        "q_proj: its path is named in both": {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["attn"]},
        "q_proj: its path is in neither `target_modules_bd_a` nor": {"target_modules_bd_a": ["o_proj"]},
        r"`nblocks`=3 must divide A, which is \(8, 16\)": {"target_modules_bd_a": ["q_proj"], "nblocks": 3},
    }
    for message, options in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            get_peft_model(models.base("llama"), LoraConfig(target_modules=["q_proj"], use_bdlora=options))
    options = {"target_modules_bd_a": ["q_proj"], "nblocks": 2}
    model = get_peft_model(models.base("llama"), LoraConfig(target_modules=["q_proj"], use_bdlora=options))
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"], use_bdlora=options))
    with pytest.raises(trimtab.AdapterError, match="cannot be combined"):
        model.add_weighted_adapter(["default", "other"], [1, 1], "both", combination_type="cat")

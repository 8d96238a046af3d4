"""QA-LoRA: its numbers are those of PEFT's GPTQ layer, whose base may be any layer."""

import peft
import pytest
import torch
from peft.tuners.lora import GPTQLoraLinear
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model


@pytest.mark.parametrize("group", [1, 4, 12])
@torch.no_grad()
def test_the_update_is_that_of_peft(group):
    options = {"r": 4, "lora_alpha": 12, "use_qalora": True, "qalora_group_size": group}
    model = models.shake(get_peft_model(models.base("llama"), LoraConfig(target_modules=["down_proj"], **options)))
    ours = model.base_model.model.model.layers[1].mlp.down_proj
    config = peft.LoraConfig(**options)
    theirs = GPTQLoraLinear(ours.base_layer, "default", config=config, r=4, lora_alpha=12)
    theirs.lora_A["default"].load_state_dict(ours.lora_A["default"].state_dict())
    theirs.lora_B["default"].load_state_dict(ours.lora_B["default"].state_dict())
    x = torch.randn(2, 5, 24)
    assert (ours(x) - ours.base_layer(x)).abs().max() > 0.1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-4)


def test_what_cannot_be():
    wrong = {
        "`qalora_group_size`=16 must divide the 24 inputs": {"target_modules": ["down_proj"]},
        "embedding layers have none such": {"target_modules": ["embed_tokens"]},
        "'pissa' cannot be used: the A of QA-LoRA": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    }
    for message, options in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            get_peft_model(models.base("llama"), LoraConfig(use_qalora=True, **options))

"""VB-LoRA: files with the chosen vectors only, and errors."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import get_peft_model
from trimtab.methods.vblora import VBLoRAConfig


def adapted(**options):
    config = VBLoRAConfig(**{"r": 2, "num_vectors": 9, "vector_length": 4, "target_modules": ["q_proj"]} | options)
    return models.shake(get_peft_model(models.base("llama"), config)).eval()


def test_a_file_may_hold_the_chosen_vectors_only(tmp_path):
    batch = models.inputs("llama")
    model, small = adapted(), adapted(save_only_topk_weights=True)
    for number in (300, 40_000):  # 16 and 32 bits
        state = trimtab.get_peft_model_state_dict(adapted(num_vectors=number, save_only_topk_weights=True))
        formats = {t.dtype for k, t in state.items() if k.endswith("_topk_indices")}
        assert formats == {torch.int16 if number == 300 else torch.int32}
    sizes = [sum(t.nbytes for t in trimtab.get_peft_model_state_dict(m).values()) for m in (model, small)]
    assert sizes[1] < sizes[0] / 2
    small.save_pretrained(tmp_path)
    loaded = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path, is_trainable=True)
    y = small(**batch).logits
    torch.testing.assert_close(loaded.eval()(**batch).logits, y)
    with pytest.raises(trimtab.AdapterError, match="'default' was loaded from a file with the chosen vectors only"):
        loaded.train()(**batch)
    torch.testing.assert_close(loaded.merge_and_unload()(**batch).logits, y)
    assert small.train()(**batch).loss.requires_grad  # whose logits are all there


def test_a_vector_that_has_no_weight_left_does_no_harm(tmp_path):
    model, batch = adapted(save_only_topk_weights=True), models.inputs("llama")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "logits" in name:
                p.mul_(1e4)
    model.save_pretrained(tmp_path)
    loaded = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_nan_in_the_bank_is_not_merged():
    model = adapted()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "vector_bank" in n)[0] = float("nan")
    with pytest.raises(trimtab.MergeError, match="vblora_vector_bank of 'default' holds NaN"):
        model.merge_adapter()


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 must .*; `topk`=3 vectors cannot be chosen from `num_vec"):
        VBLoRAConfig(r=0, topk=3, num_vectors=2)
    with pytest.raises(trimtab.ConfigError, match="`vector_length`=5 must divide the weight's 16 rows and 16 columns"):
        adapted(vector_length=5)

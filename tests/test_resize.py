"""Another vocabulary under adapters: nothing that was learnt is lost, and new tokens begin as those of the base."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model

BATCH = models.inputs("llama", 2)
CASES = {
    "elsewhere": ("llama", {"target_modules": ["q_proj"]}),
    "both embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied": ("llama-tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "token rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3]}),
    "in full": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "LoHa": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
}


def adapted(case):
    base, options = CASES[case]
    kind = trimtab.LoHaConfig if case == "LoHa" else LoraConfig
    return models.shake(get_peft_model(models.base(base), kind(r=2, task_type="CAUSAL_LM", **options))).eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_was_learnt_stays_and_can_be_saved(case, tmp_path):
    model = adapted(case)
    y = model(**BATCH).logits
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert len(model.resize_token_embeddings(70, mean_resizing=False).weight) == 70
    found = model(**BATCH).logits
    assert found.shape[-1] == 70
    torch.testing.assert_close(found[..., :64], y)
    assert {k for k, p in model.named_parameters() if p.requires_grad} == trained
    model.save_pretrained(tmp_path)
    base = models.base(CASES[case][0])
    base.resize_token_embeddings(70, mean_resizing=False)
    again = trimtab.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(again(**BATCH).logits, found)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**BATCH).logits, found, rtol=1e-4, atol=1e-4)


def test_new_rows_are_trained_with_the_others():
    model = adapted("both embeddings")
    model.resize_token_embeddings(70)
    ids = torch.tensor([[65, 69, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    rows = model.base_model.model.lm_head.lora_B["default"].weight
    assert rows.shape[0] == 70
    assert rows.grad[64:].any()


def test_what_would_be_lost_is_refused():
    model = adapted("token rows")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        trimtab.AdapterError, match=r"cannot become 5 tokens: model\.embed_tokens: trained rows 7 would be"
    ):
        model.resize_token_embeddings(5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model = adapted("both embeddings")
    model.merge_adapter()
    with pytest.raises(trimtab.AdapterError, match="'default' is merged; unmerge first"):
        model.resize_token_embeddings(70)

"""The base model's own state, under its original names."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_base_model_state_dict, get_peft_model, set_base_model_state_dict

WRAPPED = {
    "layers": LoraConfig(target_modules=["q_proj", "embed_tokens"]),
    "every wrapper": LoraConfig(modules_to_save=["lm_head"], trainable_token_indices=[1, 2]),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_it_is_taken_out_and_put_in_under_its_own_names(case):
    base = models.base("llama")
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = models.shake(get_peft_model(base, LoraConfig.from_dict(WRAPPED[case].to_dict())))
    found = get_base_model_state_dict(model)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[k], before[k]) for k in before)
    other = models.base("llama", seed=7).state_dict()
    assert set_base_model_state_dict(model, other) == ([], [])
    plain = model.unload()
    assert all(torch.equal(plain.state_dict()[k], other[k]) for k in other)


def test_what_does_not_fit_changes_nothing():
    model = get_peft_model(models.base("llama"), LoraConfig())
    state = get_base_model_state_dict(model)
    before = {k: v.clone() for k, v in state.items()}
    wrong = dict(models.base("llama", seed=7).state_dict())
    wrong["more"] = wrong.pop("lm_head.weight")
    with pytest.raises(trimtab.BaseStateError, match=r"lm_head.weight: missing; more: not in the model") as caught:
        set_base_model_state_dict(model, wrong)
    assert isinstance(caught.value, RuntimeError)
    wrong["model.norm.weight"] = torch.ones(3)
    with pytest.raises(trimtab.BaseStateError, match=r"norm.weight: given \(3,\), the model has \(16,\)"):
        set_base_model_state_dict(model, wrong, strict=False)
    assert all(torch.equal(before[k], v) for k, v in get_base_model_state_dict(model).items())
    del wrong["model.norm.weight"]
    with pytest.warns(trimtab.TrimtabWarning, match="not complete: .*more: not in the model"):
        result = set_base_model_state_dict(model, wrong, strict=False)
    assert result.unexpected_keys == ["more"]

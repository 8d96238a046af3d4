"""Trainable tokens: tied layers of an encoder-decoder and beside PEFT, merging them, and what cannot be."""

import peft
import pytest
import torch
from tests import models
from tests.behaviours import same

import trimtab
from trimtab import PeftModel, get_peft_model
from trimtab.methods.trainable_tokens import TrainableTokensConfig


@pytest.mark.filterwarnings("ignore")
def test_all_that_is_tied_in_t5_gets_the_rows(tmp_path):
    batch = models.inputs("t5")
    theirs = peft.get_peft_model(models.base("t5"), peft.TrainableTokensConfig(token_indices=[7, 3, 21]))
    theirs = models.shake(theirs, size=2.0).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = PeftModel.from_pretrained(models.base("t5"), tmp_path / "theirs")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    expected = theirs(**batch).logits
    same(ours(**batch).logits, expected)
    ours.save_pretrained(tmp_path / "ours")
    same(peft.PeftModel.from_pretrained(models.base("t5"), str(tmp_path / "ours")).eval()(**batch).logits, expected)
    plain = ours.merge_and_unload()
    assert plain.lm_head.weight is plain.shared.weight
    same(plain(**batch).logits, expected)


@pytest.mark.parametrize("targets", [["lm_head", "embed_tokens"], ["embed_tokens"], None])
def test_tied_layers_are_trained_as_one(targets):
    model = get_peft_model(
        models.base("llama-tied"), TrainableTokensConfig(token_indices=[1, 9], target_modules=targets)
    )
    (delta,) = (p for p in model.parameters() if p.requires_grad)
    head, rows = (model.base_model.model.lm_head, model.base_model.model.model.embed_tokens)
    assert head.adapters["default"].delta is delta
    assert rows.adapters["default"].delta is delta
    models.shake(model)
    model.delete_adapter("default")
    assert not [k for k in model.state_dict() if "delta" in k]


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match="`token_indices` is empty; name the tokens to train"):
        TrainableTokensConfig()
    with pytest.raises(trimtab.ConfigError, match="`token_indices` names 3 more than once"):
        TrainableTokensConfig(token_indices=[3, 1, 3])
    for wrong in ([64], [-1]):
        with pytest.raises(trimtab.ConfigError, match=f"`token_indices` names rows {wrong[0]}; the layer has 64"):
            get_peft_model(models.base("llama"), TrainableTokensConfig(token_indices=wrong))
    with pytest.raises(trimtab.ConfigError, match="`target_modules` is unset, and TRAINABLE_TOKENS has no default"):
        get_peft_model(models.base("zoo"), TrainableTokensConfig(token_indices=[1]))
    with pytest.raises(trimtab.TrimtabError, match="an embedding or a linear layer, not a conv layer"):
        get_peft_model(models.base("zoo"), TrainableTokensConfig(token_indices=[1], target_modules=["conv2"]))


def test_a_file_holds_no_embedding(tmp_path):
    model = get_peft_model(
        models.base("llama"), TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"])
    )
    model.save_pretrained(tmp_path)
    assert list(trimtab.load_peft_weights(tmp_path)) == ["base_model.model.model.embed_tokens.trainable_tokens_delta"]
    assert torch.equal(*(m.get_input_embeddings().weight for m in (model.unload(), models.base("llama"))))

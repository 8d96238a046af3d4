"""Tied layers: their adapters are one where it is asked for, in training, in files both ways, and after a merge."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model

CASES = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output layer": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "embedding in full": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "output layer in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both in full": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}
BATCH = models.inputs("llama", 2)


def adapted(case, library=trimtab, **options):
    config = library.LoraConfig(r=2, ensure_weight_tying=True, task_type="CAUSAL_LM", **CASES[case] | options)
    return models.shake(library.get_peft_model(models.base("llama-tied"), config)).eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_merge_leaves_the_layers_tied(case):
    model = adapted(case)
    y = model(**BATCH).logits
    assert (y - models.base("llama-tied")(**BATCH).logits).abs().max() > 0.1
    plain = model.merge_and_unload()
    torch.testing.assert_close(plain(**BATCH).logits, y, rtol=1e-4, atol=1e-4)
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    assert plain.config.tie_word_embeddings


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_files_go_both_ways(case, tmp_path):
    for library in (trimtab, peft):
        adapted(case, library).save_pretrained(tmp_path / library.__name__, save_embedding_layers=False)
    ours, theirs = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("trimtab", "peft"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    for name in ("trimtab", "peft"):
        found = [
            library.PeftModel.from_pretrained(models.base("llama-tied"), str(tmp_path / name)).eval()(**BATCH).logits
            for library in (trimtab, peft)
        ]
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_both_uses_of_a_tensor_train_it(case):
    model = adapted(case).train()
    trainable = {k for k, p in model.named_parameters() if p.requires_grad}
    model(**BATCH).loss.backward()
    assert {k for k, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trainable
    torch.optim.SGD(model.parameters(), 0.1).step()
    base = model.get_base_model()
    if "full" in case:
        assert (
            base.lm_head.modules_to_save["default"].weight is base.model.embed_tokens.modules_to_save["default"].weight
        )
    else:
        head, words = base.lm_head.effective()[0], base.model.embed_tokens.effective()[0]
        torch.testing.assert_close(head, words.T)


@torch.no_grad()
def test_several_adapters_each_follow_their_own():
    model = adapted("embedding", lora_alpha=4)
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["lm_head"]))
    first = model(**BATCH).logits
    model.set_adapter("plain")
    models.shake(model)
    assert (model(**BATCH).logits - first).abs().max() > 0.1
    model.set_adapter("default")
    assert torch.equal(model(**BATCH).logits, first)
    model.delete_adapter("default")
    assert model.active_adapters == ["plain"]
    model(**BATCH)


def test_where_nothing_is_tied_it_says_so():
    for base, targets in (("llama", ["embed_tokens"]), ("llama-tied", ["q_proj"])):
        with pytest.warns(trimtab.TrimtabWarning, match="none of the modules .* is tied"):
            get_peft_model(models.base(base), LoraConfig(target_modules=targets, ensure_weight_tying=True))


def test_a_variant_without_a_transposed_form_is_refused():
    config = LoraConfig(target_modules=["embed_tokens"], use_dora=True, ensure_weight_tying=True)
    with pytest.raises(trimtab.ConfigError, match="Dora has no 'm' for the transposed"):
        get_peft_model(models.base("llama-tied"), config)


@torch.no_grad()
def test_embeddings_of_an_encoder_and_a_decoder_follow_as_they_are():
    """In T5 the input embedding, those of encoder and decoder, and the output layer hold one weight."""
    config = LoraConfig(r=2, ensure_weight_tying=True, target_modules=["shared"])
    model, batch = models.shake(get_peft_model(models.base("t5"), config), size=1.0).eval(), models.inputs("t5")
    rows = [model.base_model.model.get_submodule(k) for k in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    update = rows[0].effective()[0]
    assert all(torch.equal(layer.effective()[0], update) for layer in rows)
    assert torch.equal(model.base_model.model.lm_head.effective()[0], update.T)
    y = model(**batch).logits
    torch.testing.assert_close(model.merge_and_unload()(**batch).logits, y, rtol=1e-4, atol=1e-4)

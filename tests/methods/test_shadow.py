"""ShadowPEFT: beside PEFT where the table cannot see, generation, and what cannot be."""

import peft
import pytest
import torch
from tests import models
from torch.utils.checkpoint import checkpoint

import trimtab
from trimtab import get_peft_model
from trimtab.methods.lst import LSTConfig
from trimtab.methods.shadow import ShadowConfig

OPTIONS = {"r": 2, "task_type": "CAUSAL_LM"}


def adapted(name="llama", **options):
    return models.shake(get_peft_model(models.base(name), ShadowConfig(**OPTIONS | options))).eval()


def beside_peft(tmp_path, name, **options):
    """A model, and PEFT's with the same adapter."""
    model = adapted(name, **options)
    model.save_pretrained(tmp_path)
    return model, peft.PeftModel.from_pretrained(models.base(name), tmp_path).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gpt2", {"auxiliary_loss_weight": 0.7}),
        ("opt", {"auxiliary_loss_weight": 0.0}),
        ("qwen3", {"shadow_hidden_size": 8, "auxiliary_loss_weight": 1.0}),
        ("llama-cls", {"task_type": "SEQ_CLS", "auxiliary_loss_weight": 1.0}),
        ("llama", {"target_modules": ["layers.1"], "shadow_num_attention_heads": 4}),
    ],
)
def test_the_loss_is_that_of_peft(tmp_path, name, options):
    ours, theirs = beside_peft(tmp_path, name, **options)
    batch = models.inputs(name)
    torch.testing.assert_close(ours(**batch).loss, theirs(**batch).loss, rtol=1e-5, atol=1e-5)
    ours.train()
    ours(**batch).loss.backward()
    assert all(p.grad.any() for k, p in ours.named_parameters() if "backbone.default.layers.0.mlp" in k)


def prompts():
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, :2] = mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_generation_is_the_same_with_a_cache(name, beams):
    model = adapted(name, shadow_alpha=1.0)
    with_cache, without = (
        model.generate(**prompts(), do_sample=False, num_beams=beams, use_cache=on) for on in (True, False)
    )
    assert torch.equal(with_cache, without)
    with model.disable_adapter():
        assert not torch.equal(model.generate(**prompts(), do_sample=False, num_beams=beams), without)


def test_a_generation_is_that_of_peft(tmp_path):
    ours, theirs = beside_peft(tmp_path, "llama", shadow_alpha=1.0)
    assert torch.equal(ours.generate(**prompts(), do_sample=False), theirs.generate(**prompts(), do_sample=False))


@torch.no_grad()
def test_a_call_can_go_on_from_the_cache_of_another():
    model = adapted(shadow_alpha=1.0)
    ids = prompts()["input_ids"][1:]
    whole, cache = model(input_ids=ids).logits, model(input_ids=ids[:, :4], use_cache=True).past_key_values
    torch.testing.assert_close(model(input_ids=ids[:, 4:], past_key_values=cache).logits, whole[:, 4:])
    with model.disable_adapter():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(trimtab.AdapterError, match="tokens that adapter 'default' has not seen"):
        model(input_ids=ids[:, 4:], past_key_values=cache)


def gradients(model):
    model(**models.inputs("llama")).loss.backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", [ShadowConfig(shadow_dropout=0.0), LSTConfig(reduction=2)], ids=lambda c: c.kind)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_the_gradients(config, reentrant):
    model = models.shake(get_peft_model(models.base("llama"), config)).train()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


@pytest.mark.parametrize("config", [ShadowConfig(), LSTConfig(reduction=2)], ids=lambda c: c.kind)
def test_a_checkpoint_around_an_adapter_that_would_lose_gradients_is_refused(config):
    def reentrant(forward):
        return lambda x, **kwargs: checkpoint(lambda x: forward(x, **kwargs), x, use_reentrant=True)

    model = get_peft_model(models.base("llama"), config).train()
    model.enable_input_require_grads()
    for layer in model.base_model.layers:
        layer.forward = reentrant(layer.forward)
    with pytest.raises(trimtab.AdapterError, match="use_reentrant=True loses the gradients"):
        model(**models.inputs("llama"), use_cache=False)


def test_a_whole_model_compiles():
    models.compiles_whole(adapted(shadow_alpha=1.0), input_ids=prompts()["input_ids"], use_cache=False)


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError) as error:
        ShadowConfig(shadow_model="some/model", r=0, shadow_dropout=1.0)
    for text in ("only 'mirror' can be chosen", "`r`=0 must be at least 1", "`shadow_dropout`=1.0 must be in [0, 1)"):
        assert text in str(error.value)
    with pytest.raises(trimtab.ConfigError, match="needs a model with one stack of blocks"):
        get_peft_model(models.base("bart"), ShadowConfig())
    with pytest.raises(trimtab.ConfigError, match="no GPT2Model can be built with"):
        get_peft_model(models.base("gpt2"), ShadowConfig(shadow_num_attention_heads=5))
    with pytest.raises(trimtab.MergeError, match="depends on the state beside the model"):
        adapted().merge_and_unload()
    with pytest.raises(trimtab.AdapterError, match="call the model with `input_ids`"):
        adapted(share_embeddings=False)(inputs_embeds=torch.randn(1, 4, 16))
    with pytest.raises(trimtab.AdapterError, match="call the model that was adapted, as a whole"):
        adapted().base_model.model.model(input_ids=torch.tensor([[3, 4]]))

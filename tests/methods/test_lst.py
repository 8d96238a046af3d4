"""LST: what it computes, that nothing runs backward through the model, generation, and what cannot be."""

import pytest
import torch
import torch.nn.functional as F
from tests import models
from tests.methods.test_shadow import prompts

import trimtab
from trimtab import get_peft_model
from trimtab.methods.lst import LSTConfig


def adapted(name="llama", **options):
    return models.shake(get_peft_model(models.base(name), LSTConfig(**{"reduction": 2} | options))).eval()


def around_blocks(model):
    """What goes into, and comes out of, each of the model's own blocks, in a call."""
    seen = []
    for layer in model.base_model.layers:
        layer.base_layer.register_forward_hook(
            lambda m, x, k, y: seen.append((x[0], k, y[0] if isinstance(y, tuple) else y)), with_kwargs=True
        )
    return seen


@torch.no_grad()
def test_it_computes_what_the_paper_says():
    model, last = adapted(temperature=0.5), []
    seen = around_blocks(model)
    model.base_model.layers[-1].register_forward_hook(lambda m, x, y: last.append(y[0] if isinstance(y, tuple) else y))
    model(**models.inputs("llama"), use_cache=False)
    s = None
    for layer, (x, call, y) in zip(model.base_model.layers, seen, strict=True):
        a = layer.adapters["default"]
        s = F.linear(x, a.D0) if s is None else s
        m = torch.sigmoid(a.alpha / 0.5)
        s = layer.lst_block["default"](m * F.linear(y, a.D) + (1 - m) * s, **call)
        assert s.shape[-1] == 8
    torch.testing.assert_close(last[0], seen[-1][2] + F.linear(s, a.U))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_no_graph_goes_through_the_model(name):
    model = adapted(name).train()
    model.enable_input_require_grads()  # as trainers do
    model.base_model.model.get_input_embeddings().weight.requires_grad_(True)
    seen = around_blocks(model)
    model(**models.inputs(name)).loss.backward()
    assert all(y.grad_fn is None for _, _, y in seen)
    assert model.base_model.model.get_input_embeddings().weight.grad is None or name == "gpt2"  # tied to the head
    assert all(p.grad is not None for k, p in model.named_parameters() if ".default" in k)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_generation_is_the_same_with_a_cache(name, beams):
    model = adapted(name)
    found, expected = (
        model.generate(**prompts(), do_sample=False, num_beams=beams, use_cache=on) for on in (True, False)
    )
    assert torch.equal(found, expected)
    with model.disable_adapter():
        assert not torch.equal(model.generate(**prompts(), do_sample=False, num_beams=beams), expected)


@torch.no_grad()
def test_a_cache_that_the_ladder_has_not_seen_is_refused():
    model = adapted()
    ids = prompts()["input_ids"][1:]
    whole, cache = model(input_ids=ids).logits, model(input_ids=ids[:, :4], use_cache=True).past_key_values
    torch.testing.assert_close(model(input_ids=ids[:, 4:], past_key_values=cache).logits, whole[:, 4:])
    with model.disable_adapter():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(trimtab.AdapterError, match="tokens that adapter 'default' has not seen"):
        model(input_ids=ids[:, 4:], past_key_values=cache)
    both = prompts()["input_ids"]
    cache = model(input_ids=both[:, :4], use_cache=True, adapter_names=["default", "__base__"]).past_key_values
    with pytest.raises(trimtab.AdapterError, match="a ladder by rows cannot go on from a cache"):
        model(input_ids=both[:, 4:], past_key_values=cache, adapter_names=["default", "__base__"])


def test_a_whole_model_compiles():
    models.compiles_whole(adapted(), input_ids=prompts()["input_ids"], use_cache=False)


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match="`reduction`=0 must be at least 1; `temperature`=0 must be above 0"):
        LSTConfig(reduction=0, temperature=0)
    with pytest.raises(trimtab.ConfigError, match=r"`reduction`=3 does not divide the 16 features"):
        get_peft_model(models.base("llama"), LSTConfig(reduction=3))
    with pytest.raises(trimtab.ConfigError, match=r"'model\.layers\.0\.mlp' is none of the model's blocks"):
        get_peft_model(models.base("llama"), LSTConfig(reduction=2, target_modules=["mlp"]))
    with pytest.raises(trimtab.ConfigError, match="needs a model with one stack of blocks"):
        get_peft_model(models.base("t5"), LSTConfig())
    with pytest.raises(trimtab.MergeError, match="depends on the blocks beside the model"):
        adapted().merge_and_unload()

"""Prompts beside each other, how they start, number formats, and caches of every shape."""

import pytest
import torch
import transformers as tf
from tests.prompts.setting import CONFIGS, EMBEDS, METHODS, able, adapted, base, batch, config_of, train

import trimtab

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_prompts_coexist_and_step_aside(task):
    arch = "llama" if task == "CAUSAL_LM" else "bert"
    inputs = batch(arch, task)
    plain = base(arch, task)(**inputs).logits
    model = adapted(arch, task, "prompt")
    first = model(**inputs).logits
    model.add_adapter("other", config_of(trimtab, "prefix", task))
    assert torch.equal(model(**inputs).logits, first)
    model.set_adapter("other")
    assert not torch.allclose(model(**inputs).logits[:, -1], first[:, -1])
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, plain)
    model.set_adapter("default")
    assert torch.equal(model(**inputs).logits, first)
    model.delete_adapter("other")
    assert list(model.prompt_encoder) == ["default"]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "cpt"])  # which starts at zero
def test_the_start_depends_on_the_seed_alone_and_leaves_it(method):
    first, model = adapted("llama", "CAUSAL_LM", method), base("llama", "CAUSAL_LM")
    torch.manual_seed(3)
    torch.rand(5)
    state = torch.get_rng_state()
    second = trimtab.get_peft_model(model, config_of(trimtab, method, "CAUSAL_LM"))
    assert torch.equal(torch.get_rng_state(), state)
    ones, twos, others = (
        next(m.prompt_encoder["default"].parameters())
        for m in (first, second, adapted("llama", "CAUSAL_LM", method, seed=4))
    )
    assert torch.equal(ones, twos)
    assert not torch.equal(ones, others)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_bases_train_a_float32_prompt(method):
    model = base("llama", "CAUSAL_LM").bfloat16()
    model = trimtab.get_peft_model(model, config_of(trimtab, method, "CAUSAL_LM"))
    assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.float32}
    inputs = batch("llama", "CAUSAL_LM", method=method)
    train(model, inputs, 1)
    assert model(**inputs).logits.dtype == torch.bfloat16
    model = trimtab.get_peft_model(
        base("llama", "CAUSAL_LM").bfloat16(), config_of(trimtab, method, "CAUSAL_LM"), autocast_adapter_dtype=False
    )
    assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.bfloat16}
    model = adapted("llama", "CAUSAL_LM", method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, inputs, 1)


@pytest.mark.parametrize("method", EMBEDS)
def test_gradient_checkpointing_changes_nothing(method):
    inputs, gradients = batch("llama", "CAUSAL_LM", method=method), []
    for on in (False, True):
        model = adapted("llama", "CAUSAL_LM", method).train()
        if on:
            model.get_base_model().gradient_checkpointing_enable()
        model(**inputs).loss.backward()
        gradients.append([p.grad for p in model.prompt_encoder.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("text", "ids"), [("good bad", [4, 6, 4, 6]), ("is this review good or", [1, 2, 3, 4])])
def test_a_prompt_can_start_as_a_text(text, ids, tokenizer):
    options = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": tokenizer}
    ours = adapted("llama", "CAUSAL_LM", "prompt", **options)
    theirs = peft.get_peft_model(base("llama", "CAUSAL_LM"), config_of(peft, "prompt", "CAUSAL_LM", **options))
    expected = ours.get_base_model().get_input_embeddings().weight[ids]
    assert torch.equal(ours.prompt_encoder["default"].embedding.weight, expected)
    assert torch.equal(theirs.prompt_encoder["default"].embedding.weight, expected)


def test_a_prompt_can_start_as_words_of_the_vocabulary_and_a_prefix_at_zero():
    model = adapted("llama", "CAUSAL_LM", "prompt", prompt_tuning_init="SAMPLE_VOCAB")
    words = model.get_base_model().get_input_embeddings().weight
    assert all((words == row).all(dim=1).any() for row in model.prompt_encoder["default"].embedding.weight)
    for method in ("prefix", "prefix-projected"):
        assert not adapted("llama", "CAUSAL_LM", method, init_weights="zero").prompt_encoder["default"]().any()


@pytest.mark.parametrize("arch", ["falcon", "starcoder", "mt5", "electra", "whisper"])
def test_prefixes_fit_caches_of_every_shape(arch):
    pair, sounds = (
        arch in ("mt5", "whisper"),
        {"input_features": torch.ones(2, 16, 40), "labels": torch.ones(2, 5).long()},
    )
    task = "SEQ_2_SEQ_LM" if pair else "SEQ_CLS" if arch == "electra" else "CAUSAL_LM"
    if arch == "whisper":
        torch.manual_seed(0)
        model = tf.WhisperForConditionalGeneration(CONFIGS[arch]())
        model = trimtab.get_peft_model(model, config_of(trimtab, "prefix", task))
    else:
        model = adapted(arch, task, "prefix")
    train(model, sounds if arch == "whisper" else batch("t5" if pair else "gpt2", task), 1)
    assert all(p.grad.abs().sum() > 0 for p in model.prompt_encoder.parameters())


@pytest.mark.parametrize("method", able("SEQ_CLS", EMBEDS))
@pytest.mark.parametrize("arch", ["electra", "distilbert"])
def test_bases_that_peft_cannot_give_a_prompt(arch, method):
    model = train(adapted(arch, "SEQ_CLS", method), batch("gpt2", "SEQ_CLS", method=method), 1)
    assert all(p.grad.abs().sum() > 0 for p in model.prompt_encoder.parameters())

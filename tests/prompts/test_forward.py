"""Calls with a prompt: masks, labels, positions, and outputs that align with the input."""

import pytest
import torch
import transformers as tf
from tests.prompts.setting import METHODS, N, V, able, adapted, batch, cut
from torch.nn.functional import cross_entropy


@pytest.mark.parametrize("method", ["prompt", "p-lstm"])
def test_causal_loss_is_that_of_the_real_tokens(method):
    model, inputs = adapted("llama", "CAUSAL_LM", method), batch("llama", "CAUSAL_LM")
    plain, prompt = model.get_base_model(), model.get_prompt(2)
    embedded = torch.cat([prompt, plain.get_input_embeddings()(inputs["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), inputs["attention_mask"]], dim=1)
    logits = plain(inputs_embeds=embedded, attention_mask=mask).logits
    expected = cross_entropy(logits[:, N - 1 : -1].reshape(-1, V), inputs["labels"].reshape(-1), ignore_index=-100)
    out = model(**inputs)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.logits, logits)  # a language model keeps the virtual positions, as in peft


def test_prefix_is_a_cache_before_the_tokens():
    model, inputs = adapted("llama", "CAUSAL_LM", "prefix"), batch("llama", "CAUSAL_LM")
    table = model.prompt_encoder["default"].embedding.weight.view(N, 2, 2, 2, 8)  # n, layer, key or value, head, width
    cache = tf.DynamicCache()
    for layer in range(2):
        key, value = (table[:, layer, i].transpose(0, 1).expand(2, -1, -1, -1) for i in range(2))
        cache.update(key, value, layer)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), inputs["attention_mask"]], dim=1)
    logits = model.get_base_model()(inputs["input_ids"], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(model(**inputs).logits, logits)
    labels = inputs["labels"][:, 1:].reshape(-1)
    expected = cross_entropy(logits[:, :-1].reshape(-1, V), labels, ignore_index=-100)
    torch.testing.assert_close(model(**inputs).loss, expected)


@pytest.mark.parametrize("method", able("TOKEN_CLS"))
@pytest.mark.parametrize("arch", ["bert", "gpt2"])
def test_token_outputs_and_labels_align(arch, method):
    model, inputs = adapted(arch, "TOKEN_CLS", method), batch(arch, "TOKEN_CLS", method=method)
    out = model(**inputs, output_hidden_states=True)
    assert out.logits.shape == (2, 7, 3)
    assert out.hidden_states[-1].shape == (2, 7, 32)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits.view(-1, 3), inputs["labels"].view(-1)))
    as_tuple = model(**inputs, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.loss)
    torch.testing.assert_close(as_tuple[1], out.logits)


@pytest.mark.parametrize("method", able("QUESTION_ANS"))
@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_answer_positions_are_those_of_the_input(arch, method):
    model, inputs = adapted(arch, "QUESTION_ANS", method), batch(arch, "QUESTION_ANS", method=method)
    out = model(**inputs)
    assert out.start_logits.shape == (2, 7)
    start = cross_entropy(out.start_logits, inputs["start_positions"])
    end = cross_entropy(out.end_logits[:1], inputs["end_positions"][:1])  # the other one lies outside the text
    torch.testing.assert_close(out.loss, (start + end) / 2)


@pytest.mark.parametrize("method", able("FEATURE_EXTRACTION"))
def test_features_align_with_the_tokens(method):
    inputs = batch("bert", "FEATURE_EXTRACTION", method=method)
    assert adapted("bert", "FEATURE_EXTRACTION", method)(**inputs)[0].shape == (2, 7, 32)


@pytest.mark.parametrize("method", able("SEQ_CLS"))
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "bert"])
def test_padding_on_the_right_changes_nothing(arch, method):
    model, inputs = adapted(arch, "SEQ_CLS", method), batch("gpt2", "SEQ_CLS", labels=False, method=method)
    alone = cut(inputs, slice(1, None), slice(5))
    torch.testing.assert_close(model(**inputs).logits[1:], model(**alone).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_positions_given_are_positions_without_the_prompt(arch, method):
    model, inputs = adapted(arch, "CAUSAL_LM", method), batch(arch, "CAUSAL_LM", method=method)
    positions = torch.arange(7).expand(2, -1)
    torch.testing.assert_close(model(**inputs, position_ids=positions).logits, model(**inputs).logits)
    own = {k: v[:1] for k, v in METHODS[method].call.items()}
    torch.testing.assert_close(model(inputs["input_ids"][:1], **own).logits, model(**inputs).logits[:1])  # no mask


EAGER = [("bert", "SEQ_CLS"), ("gemma3", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]


@pytest.mark.parametrize(("arch", "task", "method"), [(a, t, m) for a, t in EAGER for m in able(t)])
def test_eager_attention_agrees(arch, task, method):
    model, inputs = adapted(arch, task, method), batch(arch, task, method=method)
    expected = model(**inputs).logits
    model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    unmasked = {k: v[:1] for k, v in inputs.items() if k != "attention_mask"}
    torch.testing.assert_close(model(**unmasked).logits, expected[:1], atol=1e-5, rtol=1e-4)


def test_two_submodules_read_the_pairs_that_peft_reads_and_one_reads_its_own():
    rows = torch.arange(4 * 2 * 2 * 32, dtype=torch.float).view(4, -1)
    for submodules, pairs in ((None, [0, 0]), (1, [0, 1])):
        model = adapted("bart", "SEQ_2_SEQ_LM", "prefix", num_transformer_submodules=submodules)
        model.prompt_encoder["default"].embedding.weight.data = rows.clone()
        cache = model.get_prompt(1).self_attention_cache
        firsts = [layer.keys[0, 0, 0, 0].item() for layer in cache.layers]
        assert firsts == [rows[0, 64 * pair].item() for pair in pairs]

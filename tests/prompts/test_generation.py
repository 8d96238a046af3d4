"""Generation with a prompt: as peft generates, padded or not, from a cache or without one."""

import pytest
import torch
from tests.prompts.setting import METHODS, able, adapted, base, batch, config_of, cut, moved

import trimtab

peft = pytest.importorskip("peft")

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


CELLS = [
    *((a, "CAUSAL_LM", m) for a in ("llama", "gpt2", "gemma3") for m in able("CAUSAL_LM")),
    *((a, "SEQ_2_SEQ_LM", m) for a in ("t5", "bart") for m in able("SEQ_2_SEQ_LM")),
]


@pytest.mark.parametrize(("arch", "task", "method"), CELLS)
def test_generation_equals_pefts(arch, task, method, tmp_path):
    inputs = {k: v[:1] for k, v in batch(arch, task, method=method).items() if k != "labels"}
    torch.manual_seed(5)
    theirs = peft.get_peft_model(base(arch, task), config_of(peft, method, task)).eval()
    moved(theirs, by=3)  # else a tiny model says the same with any prompt
    theirs.save_pretrained(tmp_path)
    ours = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path)
    for options in ({}, {"num_beams": 3}):
        torch.testing.assert_close(
            ours.generate(**inputs, **GREEDY, **options), theirs.generate(**inputs, **GREEDY, **options)
        )
    torch.testing.assert_close(ours.generate(**inputs, **GREEDY, use_cache=False), ours.generate(**inputs, **GREEDY))
    assert "forward" not in vars(ours.get_base_model())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_generation_in_a_padded_batch_equals_one_by_one(arch, method):
    model = adapted(arch, "CAUSAL_LM", method)
    inputs = {k: v for k, v in batch(arch, "CAUSAL_LM", method=method).items() if k != "labels"}
    left = {k: torch.cat([v[:1], v[1:].roll(2)]) for k, v in inputs.items()}
    for options in ({}, {"num_beams": 3}):
        together = model.generate(**left, **GREEDY, **options)[1, -5:]
        alone = model.generate(**cut(inputs, slice(1, None), slice(5)), **GREEDY, **options)[0, -5:]
        assert together.tolist() == alone.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_that_is_given_back_holds_the_prompt(method):
    model, ids = adapted("llama", "CAUSAL_LM", method), batch("llama", "CAUSAL_LM")["input_ids"][:1]
    own = {k: v[:1] for k, v in METHODS[method].call.items()}
    first = model(ids[:, :4], use_cache=True, **own)
    rest = model(ids[:, 4:], past_key_values=first.past_key_values, attention_mask=torch.ones_like(ids), **own)
    torch.testing.assert_close(rest.logits, model(ids, **own).logits[:, -3:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_padding_that_no_mask_tells_of_is_found_in_the_ids(method):
    model, inputs = adapted("t5", "SEQ_2_SEQ_LM", method), batch("t5", "SEQ_2_SEQ_LM")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    assert model.generate(ids, **GREEDY).tolist() == expected.tolist()

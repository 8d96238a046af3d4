"""aLoRA: where it acts, step by step of a generation too, and that nothing changes before."""

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model

OPTIONS = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.tensor(
    [[10, 11, 5, 6, 12, 13, 14], [5, 6, 10, 11, 5, 6, 12], [10, 5, 12, 6, 14, 15, 16], [1, 8, 3, 4, 7, 5, 6]]
)
ACTS = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1]]) == 1
MASK = torch.ones_like(IDS)
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": MASK}


def made(library=trimtab, **options):
    config = library.LoraConfig(**OPTIONS | {"alora_invocation_tokens": [5, 6]} | options)
    return models.shake(library.get_peft_model(models.base("llama"), config)).eval()


def acted(model, ids=IDS, **call):
    """Where the first adapted layer's output is not that of its base, by call of the model."""
    layer, seen = model.get_base_model().model.layers[0].self_attn.q_proj, []

    def compare(m, args, y):
        seen.append((y - m.base_layer(args[0])).abs().amax(-1) > 1e-5)

    hook = layer.register_forward_hook(compare)
    y = model(input_ids=ids, **call) if "max_new_tokens" not in call else model.generate(input_ids=ids, **call)
    hook.remove()
    return y, seen


@torch.no_grad()
def test_it_acts_from_the_last_invocation_on():
    model = made()
    y, (where,) = acted(model)
    assert torch.equal(where, ACTS)
    assert torch.equal(y.logits[~ACTS], models.base("llama")(input_ids=IDS).logits[~ACTS])
    torch.testing.assert_close(model(IDS).logits, y.logits)
    assert torch.equal(acted(model, IDS[:, :1])[1][0], torch.zeros(4, 1, dtype=torch.bool))


@torch.no_grad()
def test_padding_on_the_left_changes_nothing():
    model = made()
    padded = torch.cat([IDS.new_zeros(4, 2), IDS], 1)
    y = model(input_ids=padded, attention_mask=(padded > 0).long()).logits[:, 2:]
    torch.testing.assert_close(y, model(input_ids=IDS, attention_mask=MASK).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generation_with_and_without_a_cache_and_as_in_peft():
    ours, theirs = made(), made(peft)
    theirs.load_state_dict(ours.state_dict())
    cached, seen = acted(ours, **GREEDY)
    assert [s.shape[1] for s in seen] == [7, 1, 1, 1]
    assert torch.equal(torch.cat(seen, 1), torch.cat([ACTS, ACTS[:, -1:].expand(4, 3)], 1))
    assert torch.equal(cached, theirs.generate(input_ids=IDS, **GREEDY))
    assert torch.equal(cached, ours.generate(input_ids=IDS, use_cache=False, **GREEDY))
    out, ids = ours(input_ids=IDS, use_cache=True), [IDS]  # a loop of one's own, with the cache that the model makes
    for _ in range(4):
        out.logits[..., 2] = -1e9  # the end of a text
        ids.append(out.logits[:, -1:].argmax(-1))
        out = ours(input_ids=ids[-1], past_key_values=out.past_key_values)
    assert torch.equal(torch.cat(ids, 1), cached)


@torch.no_grad()
def test_a_cache_of_the_base_is_continued():
    model = made()
    expected = model.generate(input_ids=IDS[3:], max_new_tokens=4, do_sample=False)
    with model.disable_adapter():
        cache = model(input_ids=IDS[3:, :5], use_cache=True).past_key_values
    found, seen = acted(model, IDS[3:], max_new_tokens=4, do_sample=False, past_key_values=cache)
    assert torch.equal(found, expected)
    assert all(s.all() for s in seen)
    assert seen[0].shape == (1, 2)


@torch.no_grad()
def test_an_invocation_can_be_generated_or_cut_by_a_call():
    model = made()
    whole = model(input_ids=IDS[3:]).logits[:, -1]
    cache = model(input_ids=IDS[3:, :6], use_cache=True).past_key_values  # ends within the invocation
    _, (where,) = acted(model, IDS[3:, 6:], past_key_values=cache)
    assert where.all()
    assert (model(input_ids=IDS[3:]).logits[:, -1] == whole).all()


@torch.no_grad()
def test_beams_and_rows():
    model = made()
    model.add_adapter("other", LoraConfig(**OPTIONS, alora_invocation_tokens=[12]))
    model.add_adapter("plain", LoraConfig(**OPTIONS))
    model.set_requires_grad(["other", "plain"])
    models.shake(model, 7)
    names = ["default", "other", "__base__", "plain"]
    alone = []
    for i, name in enumerate(names):
        with model.routed([name]):
            alone.append(model.generate(input_ids=IDS[i : i + 1], num_beams=2, **GREEDY | {"attention_mask": MASK[:1]}))
    found = model.generate(input_ids=IDS, adapter_names=names, num_beams=2, **GREEDY)
    assert torch.equal(found, torch.cat(alone))
    _, (where,) = acted(model, adapter_names=names)
    expected = torch.stack([ACTS[0], IDS[1].eq(12), torch.zeros(7, dtype=torch.bool), torch.ones(7, dtype=torch.bool)])
    assert torch.equal(where, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("names", [None, ["default", "__base__", "default", "default"]])
def test_checkpointed_layers_are_computed_again_as_they_were(reentrant, names):
    model = made().train()
    batch = {"input_ids": IDS, "labels": IDS, "adapter_names": names}

    def gradients():
        model.zero_grad()
        loss = model(**batch).loss
        with torch.no_grad(), model.disable_adapter():  # another call before the backward pass, as for a reference
            model(input_ids=IDS[:, :3])
        loss.backward()
        assert model.base_model.layers[0].router.rows is None
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.prepare_model_for_gradient_checkpointing(model.get_base_model())
    again = gradients()
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient)


def test_what_cannot_be():
    model = made()
    with pytest.raises(trimtab.AdapterError, match="looks for its invocation in `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, 16))
    with pytest.raises(trimtab.MergeError, match="depends on where it is invoked"):
        model.merge_adapter()
    with pytest.raises(trimtab.ConfigError, match="'pissa' changes the base"):
        made(init_lora_weights="pissa")
    with pytest.raises(trimtab.TargetError, match="a conv layer cannot show where it is invoked"):
        get_peft_model(models.base("zoo"), LoraConfig(alora_invocation_tokens=[1], target_modules=["conv1"]))
    layer = made().base_model.layers[0]
    with pytest.raises(trimtab.AdapterError, match="within a call of the whole model only"):
        layer(torch.zeros(1, 3, 16))
    seq2seq = get_peft_model(models.base("t5"), LoraConfig(alora_invocation_tokens=[1], target_modules=["q"]))
    with pytest.raises(trimtab.AdapterError, match="of decoders only"):
        seq2seq(**models.inputs("t5"))

"""ReFT: which tokens are changed, in training and in generations, and that R stays orthonormal."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import get_peft_model
from trimtab.methods.reft import ReftConfig, chosen, orthonormal


def adapted(name="llama", task="CAUSAL_LM", **options):
    return models.shake(get_peft_model(models.base(name), ReftConfig(r=2, task_type=task, **options)), size=1.0).eval()


def changed(model, **batch):
    """Which tokens of the last block's output an adapter changes, (batch, tokens)."""
    *_, layer = model.base_model.layers
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, y: seen.append(y)) for m in (layer.base_layer, layer)]
    model(**batch)
    for hook in hooks:
        hook.remove()
    before, after = (y[0] if isinstance(y, tuple) else y for y in seen)
    return (before != after).any(-1)


def places(text):
    return torch.tensor([[c == "x" for c in row] for row in text.split()])


@torch.no_grad()
def test_first_and_last_tokens_of_a_padded_prompt():
    model, ids = adapted(positions="f1+l2"), torch.randint(3, 64, (3, 7))
    assert torch.equal(changed(model, input_ids=ids), places("x....xx x....xx x....xx"))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    assert torch.equal(changed(model, input_ids=ids, attention_mask=mask), places("..x..xx x.xx... x......"))
    lengths = torch.tensor([4, 3, 1])
    found = changed(model, input_ids=ids, attention_mask=mask, prompt_lengths=lengths)
    assert torch.equal(found, places("..x.xx. xxx.... x......"))
    labels = ids.clone()
    labels[0, :5] = labels[1, :2] = -100
    assert torch.equal(changed(model, input_ids=ids, labels=labels), places("x..xx.. xx..... x....xx"))
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(changed(adapted(positions="l1"), inputs_embeds=embedded), places("......x ......x ......x"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_generation_changes_its_prompt_only(name):
    """With a cache, without one, and in a batch whose shorter prompts are padded on the left."""
    model, ids = adapted(name, positions="f2+l2"), torch.randint(3, 64, (2, 6))
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **options)
    for row in (0, 1):
        prompt = ids[row][mask[row].bool()][None]
        cached = model.generate(input_ids=prompt, **options)
        again = model.generate(
            input_ids=prompt, prompt_lengths=torch.tensor([prompt.shape[1]]), use_cache=False, **options
        )
        assert torch.equal(cached, again)
        assert torch.equal(cached[0, -5:], together[row, -5:])
    with model.disable_adapter():
        assert not torch.equal(model.generate(input_ids=ids, attention_mask=mask, **options), together)


@torch.no_grad()
def test_it_computes_what_the_paper_says():
    h = torch.randn(2, 5, 16)
    for direft in (False, True):
        model = adapted(positions="all", direft=direft)
        a = model.base_model.layers[0].adapters["default"]
        r = a.R if direft else orthonormal(a.R)
        expected = h + (h @ a.W.T + a.b - (0 if direft else h @ r.T)) @ r
        torch.testing.assert_close(a.method.output(h, h, a), expected)
        assert torch.allclose(r @ r.T, torch.eye(2), atol=1e-5) != direft
    start = torch.nn.init.orthogonal_(torch.empty(3, 16))
    torch.testing.assert_close(orthonormal(start), start)


def test_it_learns():
    """To answer one token after any prompt, by one block's last state alone."""
    torch.manual_seed(0)
    model = get_peft_model(models.base("llama"), ReftConfig(positions="l1", layers=[1])).train()
    ids, losses = torch.randint(3, 64, (16, 7)), []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(60):
        logits = model(input_ids=ids).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.full((16,), 9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_blocks_by_index_and_of_an_encoder():
    assert [x.path for x in adapted(layers=[1]).base_model.layers] == ["model.layers.1"]
    model = adapted("t5", "SEQ_2_SEQ_LM", positions="f1")
    assert [x.path for x in model.base_model.layers] == ["encoder.block.0", "encoder.block.1"]
    model(**models.inputs("t5"))
    model = adapted("t5", "SEQ_2_SEQ_LM", positions="f1", target_modules=["decoder.block.1"])
    batch = models.inputs("t5")
    with pytest.raises(trimtab.AdapterError, match=r"'decoder.block.1' has 3 tokens, and `attention_mask` 7"):
        model(**batch | {"labels": batch["labels"][:, :3]})


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 must be at least 1; `positions`='x3' must be as 'f4\+l4'"):
        ReftConfig(r=0, positions="x3")
    with pytest.raises(trimtab.ConfigError, match=r"`layers`=\[5\] are none of the model's blocks, 'model"):
        adapted(layers=[5])
    for targets, text in ((["conv2"], "a convolution's do not"), (["c1"], "`r`=9 is more than the 8 features")):
        with pytest.raises(trimtab.ConfigError, match=text):
            get_peft_model(models.base("zoo"), ReftConfig(r=9, target_modules=targets))
    with pytest.raises(trimtab.MergeError, match="depends on what happens inside the module"):
        adapted(positions="all").merge_adapter()
    with pytest.raises(trimtab.AdapterError, match=r"'head' returns \(4, 3\), not \(batch, tokens, features\)"):
        get_peft_model(models.base("zoo"), ReftConfig(r=2, target_modules=["head"]))(models.inputs("zoo")["ids"])
    config = ReftConfig(positions="f2+l3")
    assert torch.equal(chosen(config, places("xxxxxxxx"), torch.tensor([0])), places("xx...xxx"))

"""Arrow: the mixture is PEFT's where PEFT's is exact, tokens choose, and nothing is changed of what is mixed."""

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import ArrowConfig, LoraConfig, create_arrow_model, get_peft_model

BATCH = models.inputs("llama", 2)


@pytest.fixture
def folders(tmp_path):
    """Adapters of rank 1: with a larger rank PEFT finds the prototypes by an iteration, and only nearly."""
    for i, name in enumerate("abcg"):
        config = LoraConfig(r=1, lora_alpha=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        models.shake(get_peft_model(models.base("llama"), config), i + 1).save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in "abcg"]


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_k": 2, "router_temperature": 0.5}, {"use_gks": True}])
@torch.no_grad()
def test_the_mixture_is_that_of_peft(options, folders, tmp_path):
    general = folders[3:] if "use_gks" in options else None
    made = {}
    for library in (trimtab, peft):
        config = library.ArrowConfig(**options)
        made[library] = library.create_arrow_model(models.base("llama"), folders[:3], config, general).eval()
    ours, theirs = (made[library](**BATCH).logits for library in (trimtab, peft))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - models.base("llama")(**BATCH).logits).abs().max() > 0.1
    names = [n for n in made[peft].peft_config if n != "arrow_router"]
    for library in (trimtab, peft):
        made[library].save_pretrained(tmp_path / library.__name__)
    for name in (*names, "arrow_router"):
        found = [set(trimtab.load_peft_weights(tmp_path / lib / name)) for lib in ("trimtab", "peft")]
        assert found[0] == found[1]


@torch.no_grad()
def test_the_adapters_stay_as_they_are_and_can_be_used_alone(folders):
    model = create_arrow_model(models.base("llama"), folders[:3], ArrowConfig(use_gks=True), folders[3:])
    model(**BATCH)
    for i, folder in enumerate(folders[:3]):
        held, file = (
            trimtab.get_peft_model_state_dict(model, adapter_name=f"task_{i}"),
            trimtab.load_peft_weights(folder),
        )
        assert all(torch.equal(held[k], file[k]) for k in file)
    assert not any(p.requires_grad for p in model.parameters())
    with model.disable_adapter():
        torch.testing.assert_close(model(**BATCH).logits, models.base("llama")(**BATCH).logits)


@torch.no_grad()
def test_tokens_choose_their_adapters(folders):
    model = create_arrow_model(models.base("llama"), folders[:2], ArrowConfig(top_k=1))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(1, 5, 16)
    router = layer.adapters["arrow_router"]
    shares = router.method.shares(x, router)
    assert torch.equal(shares.sum(-1), torch.ones(1, 5))
    alone = []
    for name in ("task_0", "task_1"):
        model.set_adapter(name)
        alone.append(layer(x))
    model.set_adapter("arrow_router")
    expected = torch.where(shares[..., :1] > 0, *alone)
    torch.testing.assert_close(layer(x), expected)
    assert 0 < int((shares[..., 0] > 0).sum()) < 5, "all tokens chose the same: the test shows nothing"


@torch.no_grad()
def test_a_saved_mixture_comes_back(folders, tmp_path):
    model = create_arrow_model(models.base("llama"), folders[:2], ArrowConfig(top_k=2))
    model.save_pretrained(tmp_path / "saved")
    again = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path / "saved/task_0", adapter_name="task_0")
    again.load_adapter(tmp_path / "saved/task_1", "task_1")
    again.load_adapter(tmp_path / "saved/arrow_router", "arrow_router")
    again.set_adapter("arrow_router")
    torch.testing.assert_close(again(**BATCH).logits, model(**BATCH).logits)


def test_what_cannot_be_mixed(folders, tmp_path):
    wrong = {
        r"`top_k`=3 must be between 1 and the number of adapters, 2": (folders[:2], ArrowConfig(), None),
        "`use_gks` needs general adapters": (folders[:3], ArrowConfig(use_gks=True), None),
        "`router_temperature`=0 must be above 0": (folders[:3], ArrowConfig(router_temperature=0), None),
    }
    for message, (tasks, config, general) in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            create_arrow_model(models.base("llama"), tasks, config, general)
    model = create_arrow_model(models.base("llama"), folders[:3], ArrowConfig())
    with pytest.raises(trimtab.MergeError, match="depends on each token"):
        model.merge_adapter()

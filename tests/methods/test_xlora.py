"""X-LoRA: the mixture is PEFT's, whose files cannot be read back; ours can, with the adapters that are mixed."""

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, XLoraConfig, get_peft_model

BATCH = models.inputs("llama", 2)
OPTIONS = {
    "plain": {},
    "deep, by layer": {"xlora_depth": 3, "xlora_size": 6, "layerwise_scalings": True, "softmax_temperature": 0.5},
    "best one": {"top_k_lora": 1},
    "softmax among the best": {"enable_softmax": False, "enable_softmax_topk": True, "top_k_lora": 2},
    "no softmax": {"enable_softmax": False},
    "weighted": {"global_scaling_weight": 0.7, "scaling_pass_value": 0.5},
}


@pytest.fixture
def adapters(tmp_path):
    """PEFT can call the adapters nothing but "0", "1", ..."""
    for i in range(3):
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        models.shake(get_peft_model(models.base("llama"), config), i + 1).save_pretrained(tmp_path / str(i))
    return {str(i): str(tmp_path / str(i)) for i in range(3)}


def made(library, adapters, **options):
    base = models.base("llama")
    base.config.use_cache = False
    config = library.XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, adapters=dict(adapters), **options)
    return library.get_peft_model(base, config).eval()


def network(model):
    """The tensors of the network that weights the adapters, by their names in it."""
    found = {k.split(".layers.")[-1]: v for k, v in model.state_dict(keep_vars=True).items() if "xlora_classifier" in k}
    return {k.removeprefix("default."): v for k, v in found.items()}


@pytest.mark.parametrize("case", OPTIONS)
@torch.no_grad()
def test_the_mixture_is_that_of_peft(case, adapters):
    ours, theirs = (made(library, adapters, **OPTIONS[case]) for library in (trimtab, peft))
    wanted = network(theirs)
    assert network(ours).keys() == wanted.keys()
    for i, (key, tensor) in enumerate(sorted(network(ours).items())):
        tensor.normal_(generator=torch.Generator().manual_seed(i))
        wanted[key].copy_(tensor)
    found = ours(**BATCH).logits
    torch.testing.assert_close(found, theirs(**BATCH).logits, rtol=1e-4, atol=1e-4)
    assert (found - models.base("llama")(**BATCH).logits).abs().max() > 0.1


def test_the_network_is_trained_and_the_adapters_only_if_asked(adapters):
    for train_adapters in (False, True):
        model = made(trimtab, adapters, use_trainable_adapters=train_adapters).train()
        model(**BATCH).loss.backward()
        moved = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert any("xlora_classifier" in k for k in moved)
        assert any("lora_A" in k for k in moved) == train_adapters
        assert {k for k, p in model.named_parameters() if p.requires_grad} == moved


@torch.no_grad()
def test_a_saved_mixture_comes_back_with_its_adapters(adapters, tmp_path):
    model = models.shake(made(trimtab, adapters, layerwise_scalings=True))
    model.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir() if p.is_dir()) == ["0", "1", "2"]
    for folder in adapters.values():  # the saved ones are taken, wherever they came from
        (tmp_path / folder / "adapter_model.safetensors").unlink()
    base = models.base("llama")
    base.config.use_cache = False
    again = trimtab.PeftModel.from_pretrained(base, tmp_path / "saved")
    torch.testing.assert_close(again(**BATCH).logits, model(**BATCH).logits)


@torch.no_grad()
def test_generation_runs_without_a_cache_and_says_so(adapters):
    model, ids = models.shake(made(trimtab, adapters)), BATCH["input_ids"]
    options = {"max_new_tokens": 3, "do_sample": False}
    found = model.generate(input_ids=ids, use_cache=False, **options)
    step = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found[:, : step.shape[1]], step)
    with pytest.raises(trimtab.AdapterError, match="call it with use_cache=False"):
        model.generate(input_ids=ids, use_cache=True, **options)


def test_what_cannot_be(adapters, tmp_path):
    with pytest.raises(
        trimtab.ConfigError, match=r"`adapters` must name .*; .*exclude each other; .*needs `top_k_lora`"
    ):
        XLoraConfig(enable_softmax_topk=True)
    with pytest.raises(trimtab.ConfigError, match=r"`top_k_lora`=4 must be between 1"):
        XLoraConfig(adapters=adapters, top_k_lora=4)
    base = models.base("llama")
    before = list(base.state_dict())
    with pytest.raises(trimtab.AdapterFileError):
        get_peft_model(base, XLoraConfig(hidden_size=16, adapters={"a": str(tmp_path / "nowhere")}))
    assert list(base.state_dict()) == before
    with pytest.raises(trimtab.ConfigError, match="`hidden_size` must be given"):
        get_peft_model(base, XLoraConfig(adapters=adapters))

"""Cartridges: starts from a cache or a text, frozen tokens, and several after one another."""

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import CartridgeConfig, PrefixTuningConfig, get_peft_model

BATCH = models.inputs("llama", 2)


def adapted(n=4, frozen=1, kind=CartridgeConfig):
    options = {"num_frozen_tokens": frozen} if kind is CartridgeConfig else {}
    return get_peft_model(models.base("llama"), kind(num_virtual_tokens=n, task_type="CAUSAL_LM", **options)).eval()


class Tokenizer:
    """A token for each character; with a template, one for the role before them."""

    def __init__(self, template=False):
        self.chat_template = "roles" if template else None

    def __call__(self, text, return_tensors="pt", **options):
        return {"input_ids": torch.tensor([[ord(c) % 60 + 3 for c in text]])}

    def apply_chat_template(self, messages, **options):
        if not self.chat_template:
            raise ValueError("there is no template")
        role = {"system": 1, "user": 2}[messages[0]["role"]]
        ids = torch.cat([torch.tensor([[role]]), self(messages[0]["content"])["input_ids"]], dim=1)
        return {"input_ids": ids} if options["return_dict"] else ids


@pytest.mark.parametrize("kind", [CartridgeConfig, PrefixTuningConfig])
@torch.no_grad()
def test_a_prefix_from_a_text_is_as_if_the_text_stood_there(kind):
    model, text = adapted(kind=kind), "word"
    start = trimtab.initialize_kv_prefix_from_text(model, Tokenizer(), text=text + "more")
    assert start.shape == (4, 32)
    ids = BATCH["input_ids"]
    whole = torch.cat([Tokenizer()(text)["input_ids"].expand(2, -1), ids], dim=1)
    expected = models.base("llama")(input_ids=whole).logits[:, 4:]
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_layout_is_that_of_peft():
    cache = models.base("llama")(input_ids=BATCH["input_ids"][:1], use_cache=True).past_key_values
    legacy = [(layer.keys, layer.values) for layer in cache.layers]
    for held in (cache, legacy):
        ours = trimtab.prompt_embeddings_from_past_key_values(held, num_virtual_tokens=3)
        theirs = peft.prompt_embeddings_from_past_key_values(legacy, num_virtual_tokens=3)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("template", [False, True])
def test_a_start_from_a_text_is_pefts(template):
    ours, tokenizer = adapted().train(), Tokenizer(template)
    theirs = peft.get_peft_model(
        models.base("llama"), peft.CartridgeConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    starts = [
        lib.initialize_kv_prefix_from_text(model, tokenizer, text="some words", max_length=6)
        for lib, model in ((trimtab, ours), (peft, theirs))
    ]
    torch.testing.assert_close(*starts)
    assert ours.training


def test_a_cartridge_that_is_not_trained(tmp_path):
    theirs = peft.get_peft_model(
        models.base("llama"), peft.CartridgeConfig(num_virtual_tokens=2, num_frozen_tokens=2, task_type="CAUSAL_LM")
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path / "theirs")
    torch.testing.assert_close(ours(**BATCH).logits, theirs.eval()(**BATCH).logits, rtol=1e-5, atol=1e-5)


def test_the_first_tokens_stay_as_they_are():
    model = adapted(frozen=2).train()
    encoder = model.prompt_encoder["default"]
    before = encoder().detach().clone()
    model(**BATCH).loss.backward()
    torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5).step()
    after = encoder().detach()
    assert torch.equal(after[:2], before[:2])
    assert (after[2:] != before[2:]).all(dim=1).all()


@torch.no_grad()
def test_several_after_one_another(tmp_path):
    for i, n in enumerate((2, 3)):
        models.shake(adapted(n)).save_pretrained(tmp_path / str(i))
    trimtab.compose_cartridge_adapters([tmp_path / "0", tmp_path / "1"], output_path=tmp_path / "both")
    parts = [trimtab.load_peft_weights(tmp_path / str(i))["prompt_embeddings"] for i in range(2)]
    loaded = [
        lib.PeftModel.from_pretrained(models.base("llama"), str(tmp_path / "both")).eval() for lib in (trimtab, peft)
    ]
    assert torch.equal(loaded[0].prompt_encoder["default"]().detach(), torch.cat(parts))
    torch.testing.assert_close(*(m(**BATCH).logits for m in loaded), rtol=1e-5, atol=1e-5)
    adapted(kind=PrefixTuningConfig).save_pretrained(tmp_path / "prefix")
    with pytest.raises(trimtab.ConfigError, match="prefix is a PREFIX_TUNING adapter"):
        trimtab.compose_cartridge_adapters([tmp_path / "0", tmp_path / "prefix"], output_path=tmp_path / "no")
    other = CartridgeConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(models.base("llama", seed=1), other).save_pretrained(tmp_path / "other")
    with pytest.raises(trimtab.ConfigError, match="they were made on different models"):
        trimtab.compose_cartridge_adapters([tmp_path / "0", tmp_path / "other"], output_path=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`num_frozen_tokens`=4 must be .* below `num_virtual_tokens`=4"):
        CartridgeConfig(num_virtual_tokens=4, num_frozen_tokens=4)
    model = adapted()
    with pytest.raises(trimtab.AdapterError, match="the cache holds 2 tokens, less than `num_virtual_tokens`=4"):
        trimtab.initialize_kv_prefix_from_text(model, Tokenizer(), text="ab")
    with pytest.raises(trimtab.AdapterError, match=r"gives a prefix of \(3, 32\), and 'default' is \(4, 32\)"):
        trimtab.initialize_kv_prefix_from_text(model, Tokenizer(), text="abcd", num_virtual_tokens=3)
    with pytest.raises(trimtab.AdapterError, match="'x' is no adapter of keys and values"):
        trimtab.initialize_kv_prefix_from_text(model, Tokenizer(), text="abcd", adapter_name="x")


@torch.no_grad()
def test_caches_that_hold_no_prefix_are_refused():
    model, several = adapted(), models.base("llama")(**BATCH, use_cache=True).past_key_values
    with pytest.raises(trimtab.AdapterError, match="the cache is of 2 rows; a prefix is made of one text"):
        trimtab.initialize_kv_prefix_from_past_key_values(model, past_key_values=several)
    long = torch.randint(3, 64, (1, 30))
    sliding = models.base("gemma3")(input_ids=long, use_cache=True).past_key_values
    with pytest.raises(trimtab.AdapterError, match=r"keeps the last tokens only \(a sliding window\)"):
        trimtab.prompt_embeddings_from_past_key_values(sliding, num_virtual_tokens=4)
    pair = CartridgeConfig(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM")
    with pytest.raises(trimtab.AdapterError, match="is of an encoder and a decoder"):
        trimtab.initialize_kv_prefix_from_past_key_values(
            get_peft_model(models.base("t5"), pair), past_key_values=several
        )

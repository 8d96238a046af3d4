"""Any adapter as LoRA of a chosen rank: exact where the rank allows it, nearest otherwise, and the error is told."""

import json

import peft
import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, convert_to_lora, get_peft_model, save_as_lora

EVERY = ["lin1", "c1", "conv1", "conv2", "conv3", "mha"]
CASES = {
    "LoRA": LoraConfig(r=4, init_lora_weights=False, target_modules=[*EVERY, "emb"]),
    "LoRA, experts": LoraConfig(r=3, target_modules=["lin1"], target_parameters=["experts.up", "lin0.weight"]),
    "DoRA": LoraConfig(r=2, use_dora=True, target_modules=EVERY[:4]),
    "LoHa": trimtab.LoHaConfig(r=2, target_modules=[*EVERY, "emb"]),
    "LoKr": trimtab.LoKrConfig(r=2, target_modules=["lin0", "lin1"]),
    "VeRA": trimtab.VeraConfig(r=4, target_modules=["lin0", "lin1"]),
    "IA3, biases too": trimtab.IA3Config(target_modules=["lin0", "c1"], feedforward_modules=["c1"]),
    "modules and rows": LoraConfig(
        target_modules=["lin1"], modules_to_save=["head"], trainable_token_indices={"emb": [3]}
    ),
}
BATCH = models.inputs("zoo")


def adapted(config):
    return models.shake(get_peft_model(models.base("zoo"), config)).eval()


def written(case):
    """A fresh copy, since putting an adapter in fills a configuration."""
    return type(CASES[case]).from_dict(CASES[case].to_dict())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_with_all_singular_values_it_is_the_same_adapter(case, tmp_path):
    model = adapted(written(case))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = save_as_lora(tmp_path, model, 1.0)
    assert done.largest < 1e-5
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the model is not changed"
    loaded = trimtab.PeftModel.from_pretrained(models.base("zoo"), tmp_path).eval()
    torch.testing.assert_close(models.output(loaded, BATCH), models.output(model, BATCH), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_smaller_rank_is_the_nearest_and_its_error_is_told():
    model = adapted(trimtab.LoHaConfig(r=2, target_modules=["lin0"]))
    layer = model.base_model.model.lin0
    update = layer.get_delta_weight("default")
    values = torch.linalg.svdvals(update)
    for rank in (1, 2, 3):
        config, state = done = convert_to_lora(model, rank)
        assert (config.r, config.lora_alpha) == (rank, rank)
        a, b = (state[f"base_model.model.lin0.lora_{x}.weight"] for x in "AB")
        assert a.shape == (rank, 12)
        error = (update - b @ a).norm()
        torch.testing.assert_close(error, values[rank:].norm())
        assert done.errors["lin0"] == pytest.approx(float(error / update.norm()), rel=1e-4)


@torch.no_grad()
def test_a_share_gives_each_layer_the_rank_it_needs():
    model = adapted(trimtab.LoHaConfig(r=2, target_modules=["lin0", "lin1", "c1"]))
    config, _ = done = convert_to_lora(model, 0.9)
    assert all(error**2 <= 0.1 + 1e-6 for error in done.errors.values())
    for path in ("lin0", "lin1", "c1"):
        here = config.at(path)
        values = torch.linalg.svdvals(model.base_model.model.get_submodule(path).get_delta_weight("default"))
        assert values[: here.r - 1].square().sum() < 0.9 * values.square().sum()
        assert here.lora_alpha == here.r


@torch.no_grad()
def test_peft_reads_it_and_finds_the_same(tmp_path):
    model = adapted(trimtab.LoHaConfig(r=2, target_modules=["lin0", "conv2"]))
    save_as_lora(tmp_path, model, 4)
    theirs = peft.PeftModel.from_pretrained(models.base("zoo"), str(tmp_path)).eval()
    torch.testing.assert_close(models.output(theirs, BATCH), models.output(model, BATCH), rtol=1e-5, atol=1e-5)
    original = peft.get_peft_model(models.base("zoo"), peft.LoHaConfig(r=2, target_modules=["lin0"]))
    models.shake(original).save_pretrained(tmp_path / "loha")
    ours = trimtab.PeftModel.from_pretrained(models.base("zoo"), tmp_path / "loha")
    (_, found), (_, wanted) = convert_to_lora(ours, 2), peft.convert_to_lora(original, 2)
    assert found.keys() == wanted.keys()
    products = [
        s["base_model.model.lin0.lora_B.weight"] @ s["base_model.model.lin0.lora_A.weight"] for s in (found, wanted)
    ]
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


REFUSED = {
    "rank 0": (trimtab.LoHaConfig(target_modules=["lin0"]), 0, "rank of 0 makes no sense"),
    "share": (trimtab.LoHaConfig(target_modules=["lin0"]), 1.5, "`rank`=1.5 is a share"),
    "too high": (trimtab.LoHaConfig(target_modules=["lin0", "lin1"]), 10, r"lin1: rank 10 is larger .* \(8\)"),
    "groups": (trimtab.LoHaConfig(target_modules=["gconv"]), 2, "gconv: the weight of a conv layer .* no one matrix"),
    "start": (LoraConfig(target_modules=["lin0"], init_lora_weights="pissa"), 2, "began by changing the base"),
    "bias": (trimtab.IA3Config(target_modules=["lin0", "emb"], feedforward_modules=[]), 2, "emb: .*changes the bias"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_what_has_no_equivalent_is_refused(case, kind):
    config, rank, message = REFUSED[case]
    model = adapted(type(config).from_dict(config.to_dict()))
    with pytest.raises(kind, match=message):
        convert_to_lora(model, rank)


def test_a_model_without_the_adapter():
    with pytest.raises(trimtab.ConversionError, match="no adapter layers of 'default'"):
        convert_to_lora(models.base("zoo"), 2)
    model = adapted(trimtab.LoHaConfig(target_modules=["lin0"]))
    model.merge_adapter()
    with pytest.raises(trimtab.ConversionError, match="'default' is merged; unmerge first"):
        convert_to_lora(model, 2)

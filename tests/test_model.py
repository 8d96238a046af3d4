"""A model with adapters: what is trained, what acts, how it starts, what others read off it, what its status says."""

import copy
import gc
import weakref

import peft
import pytest
import torch
from tests import models
from tests.behaviours import MERGE
from tests.table import FIRST
from torch import nn

import trimtab
from trimtab import LoraConfig, PeftModel, get_layer_status, get_model_status, get_peft_model

IDS = {"ids": models.inputs("zoo")["ids"]}


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["lin0", "lin1"]} | options)


def zoo(**options):
    return models.shake(get_peft_model(models.base("zoo"), lora(**options))).eval()


def trainable(model):
    return {k.split(".")[-2] for k, p in model.named_parameters() if p.requires_grad}


# what is trained
def test_loading_and_adding_leaves_the_trained_adapter_trained(tmp_path):
    zoo().save_pretrained(tmp_path)
    model = zoo()
    assert trainable(model) == {"default"}
    model.add_adapter("added", lora())
    assert trainable(model) == {"default"}
    for name, on in (("loaded", False), ("loaded to train", True)):
        model.load_adapter(tmp_path, name, is_trainable=on)
        assert trainable(model) == {"default"}
        assert model.active_adapters == ["default"]
    model.set_adapter("loaded")
    assert trainable(model) == {"loaded"}
    model.set_adapter("added", inference_mode=True)
    assert trainable(model) == set()


def test_a_first_adapter_loaded_for_inference_or_training(tmp_path):
    zoo().save_pretrained(tmp_path)
    for on in (False, True):
        model = PeftModel.from_pretrained(models.base("zoo"), tmp_path, is_trainable=on)
        assert trainable(model) == ({"default"} if on else set())
        assert model.training == on
        assert model.peft_config["default"].inference_mode is not on


def test_loading_into_an_adapter_that_is_there(tmp_path):
    model = zoo()
    model.save_pretrained(tmp_path)
    y = models.output(model, IDS)
    models.shake(model, 7)
    assert not torch.equal(models.output(model, IDS), y)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(models.output(model, IDS), y)
    assert trainable(model) == {"default"}


# how it starts
def test_starts_depend_on_the_seed_and_the_name_of_the_layer_only():
    def start(seed, **options):
        base = models.base("zoo")
        torch.manual_seed(seed)
        tensors = trimtab.get_peft_model_state_dict(get_peft_model(base, lora(**options)))
        return tensors["base_model.model.lin1.lora_A.weight"]

    assert torch.equal(start(1), start(1))
    assert torch.equal(start(1), start(1, target_modules=["lin1"]))
    assert not torch.equal(start(1), start(2))


def test_injecting_draws_nothing_from_torchs_generator():
    base = models.base("zoo")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    get_peft_model(base, lora())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_starts_are_spread_like_those_of_peft(init):
    spreads = []
    for library in (trimtab, peft):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(200, 300), nn.Embedding(400, 100))
        config = library.LoraConfig(r=16, target_modules=["0", "1"], init_lora_weights=init)
        model = library.get_peft_model(base, config)
        spreads.append({k: p.std() for k, p in model.named_parameters() if p.requires_grad})
    assert spreads[0].keys() == spreads[1].keys()
    for key, spread in spreads[0].items():
        torch.testing.assert_close(spread, spreads[1][key], rtol=0.06, atol=0)


# what acts
def test_adapters_of_different_methods_at_once(tmp_path):
    """Every method whose effect is a weight, on the same layers; saved and loaded together."""
    model = get_peft_model(models.base("zoo"), lora(), mixed=True)
    kinds = [k for k, row in FIRST.items() if row.model == "zoo" and not row.leaves_out(MERGE) and k != "LORA"]
    for kind in kinds:
        model.add_adapter(kind, FIRST[kind].config())
    names = ["default", *kinds]
    model.set_requires_grad(names)
    models.shake(model, size=0.05).eval()
    for active in (names, names[::-1], names[1:3]):
        model.set_adapter(active)
        y = models.output(model, IDS)
        model.merge_adapter()
        torch.testing.assert_close(models.output(model, IDS), y, rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
    model.set_adapter(names)
    model.save_pretrained(tmp_path)
    again = trimtab.PeftMixedModel.from_pretrained(models.base("zoo"), tmp_path)
    for kind in kinds:
        again.load_adapter(tmp_path / kind, kind)
    again.set_adapter(names)
    torch.testing.assert_close(models.output(again, IDS), models.output(model, IDS))


def test_adapters_in_different_number_formats_each_get_the_original_input():
    """One adapter in bf16 must not lower the precision of what another computes."""
    model = zoo()
    model.add_adapter("bf16", lora())
    for name, p in model.named_parameters():
        if ".bf16." in name:
            p.data = p.data.zero_().bfloat16()
    y = models.output(model, IDS)
    for order in (["bf16", "default"], ["default", "bf16"]):
        model.base_model.set_adapter(order)
        torch.testing.assert_close(models.output(model, IDS), y)


def test_part_of_the_active_adapters_merged():
    """The merged ones act through the weight, the others beside it: none is dropped, none counts twice."""
    model = zoo()
    model.add_adapter("other", lora(r=2))
    model.set_requires_grad("other")
    models.shake(model, 8, only="other")
    model.base_model.set_adapter(["default", "other"])
    y = models.output(model, IDS)
    for first in ("default", "other"):
        model.merge_adapter([first])
        torch.testing.assert_close(models.output(model, IDS), y, rtol=1e-4, atol=1e-4)
        model.merge_adapter()
        torch.testing.assert_close(models.output(model, IDS), y, rtol=1e-4, atol=1e-4)
        assert sorted(model.base_model.merged_adapters) == ["default", "other"]
        model.unmerge_adapter()


def test_merging_into_half_precision_reports_what_it_lost():
    model = models.shake(get_peft_model(models.base("zoo", dtype=torch.bfloat16), lora()))
    layer = model.base_model.model.lin0
    w = layer.base_layer.weight.float() + layer.scaling["default"] * (
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    report = model.merge_adapter()
    lost = (layer.base_layer.weight.float() - w).abs()
    found = {e.path: e for e in report.layers}["lin0"]
    assert found.largest == pytest.approx(float(lost.max().detach()), rel=1e-4)
    assert 0 < report.mean < report.largest
    assert f"largest {report.largest:.3g} (in " in str(report)


def test_merge_keeps_tied_weights_tied_where_it_can():
    config = LoraConfig(r=2, target_modules=["q_proj"])
    merged = get_peft_model(models.base("llama-tied"), config).merge_and_unload()
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    assert merged.config.tie_word_embeddings
    config = LoraConfig(r=2, target_modules=["embed_tokens"])
    model = models.shake(get_peft_model(models.base("llama-tied"), config)).eval()
    y = models.output(model, models.inputs("llama"))
    merged = model.merge_and_unload()
    torch.testing.assert_close(models.output(merged, models.inputs("llama")), y, rtol=1e-4, atol=1e-4)
    assert merged.lm_head.weight is not merged.get_input_embeddings().weight
    assert not merged.config.tie_word_embeddings


def test_disable_inside_disable():
    model = zoo()
    base = models.output(models.base("zoo").requires_grad_(False), IDS)  # torch computes a frozen attention otherwise
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(models.output(model, IDS), base)
        assert torch.equal(models.output(model, IDS), base)
    assert not torch.equal(models.output(model, IDS), base)


def test_a_deleted_adapter_is_freed():
    model = zoo()
    model.add_adapter("other", lora())
    held = weakref.ref(model.base_model.model.lin0.lora_A["other"].weight)
    model.set_adapter("other")
    models.output(model, IDS)
    model.delete_adapter("other")
    gc.collect()
    assert held() is None
    assert model.active_adapters == ["default"]


def test_adapters_come_and_go_without_a_trace():
    model = zoo()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    y = models.output(model, IDS)
    for _ in range(3):
        model.add_adapter("other", lora(target_modules=["lin0", "c1", "emb"], modules_to_save=["head"]))
        model.set_adapter("other")
        model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(models.output(model, IDS), y)
    assert {k for k in model.state_dict() if "lora" in k} == {k for k in before if "lora" in k}


# what others read
def test_a_layer_reads_like_one_of_peft():
    ours, theirs = zoo(lora_dropout=0.1), peft.get_peft_model(
        models.base("zoo"), peft.LoraConfig(r=4, target_modules=["lin0", "lin1"], lora_dropout=0.1)
    )  # fmt: skip
    for model in (ours, theirs):
        layer = model.base_model.model.lin0
        assert type(layer.lora_A["default"]) is nn.Linear
        assert type(layer.lora_dropout["default"]) is nn.Dropout
        assert (layer.lora_A["default"].in_features, layer.lora_A["default"].out_features) == (12, 4)
        assert layer.scaling == {"default": 2.0}
        assert (layer.r, layer.lora_alpha) == ({"default": 4}, {"default": 8})
        assert list(layer.active_adapters) == ["default"]
        assert list(layer.merged_adapters) == []
        assert (layer.in_features, layer.out_features) == (12, 20)
        assert type(layer.get_base_layer()) is nn.Linear
        assert torch.equal(layer.weight, layer.base_layer.weight)
        assert not layer.merged
        assert not layer.disable_adapters


def test_status_is_that_of_peft():
    ours = zoo()
    ours.add_adapter("other", lora(target_modules=["lin0"]))
    theirs = peft.get_peft_model(models.base("zoo"), peft.LoraConfig(r=4, target_modules=["lin0", "lin1"]))
    theirs.add_adapter("other", peft.LoraConfig(r=4, target_modules=["lin0"]))
    fields = ("name", "enabled", "active_adapters", "merged_adapters", "requires_grad", "available_adapters", "devices")
    found = {s.name: [getattr(s, f) for f in fields] for s in get_layer_status(ours)}
    assert found == {s.name: [getattr(s, f) for f in fields] for s in peft.get_layer_status(theirs)}
    mine, other = get_model_status(ours), peft.get_model_status(theirs)
    for name in (
        *fields[1:],
        "trainable_params",
        "total_params",
        "num_adapter_layers",
        "peft_types",
        "base_model_type",
    ):
        assert getattr(mine, name) == getattr(other, name), name


def test_what_the_base_model_has_is_found_through_the_wrappers():
    model = get_peft_model(models.base("llama"), LoraConfig())
    assert model.config is model.get_base_model().config
    assert model.device == torch.device("cpu")
    assert model.get_input_embeddings() is model.get_base_model().get_input_embeddings()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.nonsense
    assert copy.deepcopy(model).config == model.config

"""Another adapter's values under the same name: smaller ranks, other scales, fewer layers; compiled models stay so."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

BATCH = models.inputs("zoo")
FIRST = {"r": 4, "lora_alpha": 8, "target_modules": ["lin0", "lin1", "conv2", "emb"]}
OTHERS = {
    "the same shape": {},
    "another scale": {"lora_alpha": 3},
    "a smaller rank": {"r": 2},
    "fewer layers": {"target_modules": ["lin1", "emb"]},
    "ranks by layer": {"r": 2, "rank_pattern": {"lin0": 3}, "alpha_pattern": {"lin1": 7}},
}


def saved(folder, seed=9, kind=LoraConfig, **options):
    model = models.shake(get_peft_model(models.base("zoo"), kind(**options)), seed).eval()
    model.save_pretrained(folder)
    return models.output(model, BATCH)


@pytest.mark.parametrize("case", OTHERS)
@torch.no_grad()
def test_the_swapped_adapter_is_the_new_one(case, tmp_path):
    wanted = saved(tmp_path / "new", **FIRST | OTHERS[case])
    model = models.shake(get_peft_model(models.base("zoo"), LoraConfig(**FIRST))).eval()
    tensors = {k: v.data_ptr() for k, v in model.state_dict().items()}
    hotswap_adapter(model, tmp_path / "new", "default")
    torch.testing.assert_close(models.output(model, BATCH), wanted)
    assert tensors == {k: v.data_ptr() for k, v in model.state_dict().items()}, "values change, tensors do not"
    model.save_pretrained(tmp_path / "again")
    again = trimtab.PeftModel.from_pretrained(models.base("zoo"), tmp_path / "again").eval()
    torch.testing.assert_close(models.output(again, BATCH), wanted)


def test_a_compiled_model_is_not_compiled_again(tmp_path):
    with torch.no_grad():
        wanted = {case: saved(tmp_path / case, **FIRST | OTHERS[case]) for case in OTHERS}
        wanted |= {"a larger rank": saved(tmp_path / "a larger rank", **FIRST | {"r": 6})}
    model = models.shake(get_peft_model(models.base("zoo"), LoraConfig(**FIRST))).eval()
    with torch.no_grad():
        y = models.output(model, BATCH)
        prepare_model_for_compiled_hotswap(model, target_rank=6)
        torch.testing.assert_close(models.output(model, BATCH), y)
        assert model.peft_config["default"].r == 6
        compiled = torch.compile(model, backend="aot_eager")
        compiled(BATCH["ids"])
        with torch._dynamo.config.patch(error_on_recompile=True):
            for case, expected in wanted.items():
                hotswap_adapter(compiled, tmp_path / case, "default")
                torch.testing.assert_close(compiled(BATCH["ids"]), expected)
    torch._dynamo.reset()


@torch.no_grad()
def test_other_methods_are_exchanged_tensor_by_tensor(tmp_path):
    options = {"r": 2, "target_modules": ["lin0"], "kind": trimtab.LoHaConfig}
    wanted = saved(tmp_path / "new", **options)
    model = get_peft_model(models.base("zoo"), trimtab.LoHaConfig(r=2, target_modules=["lin0"])).eval()
    hotswap_adapter(model, tmp_path / "new", "default")
    torch.testing.assert_close(models.output(model, BATCH), wanted)
    saved(tmp_path / "alpha", **options, alpha=3)
    with pytest.raises(trimtab.AdapterError, match="differ in 'alpha'"):
        hotswap_adapter(model, tmp_path / "alpha", "default")


WRONG = {
    "another method": (
        trimtab.LoHaConfig,
        {"target_modules": ["lin0"]},
        "a LORA adapter cannot be swapped for one of LOHA",
    ),
    "a larger rank": (LoraConfig, {"r": 5, "target_modules": ["lin0"]}, "lin0: rank 5, and the model has room for 4"),
    "other layers": (
        LoraConfig,
        {"r": 4, "target_modules": ["lin0", "c1"]},
        r"c1.lora_A.weight: in the file, not in the model",
    ),
    "DoRA": (LoraConfig, {"r": 4, "use_dora": True, "target_modules": ["lin0"]}, "differ in 'use_dora'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_changes_nothing(case, tmp_path):
    kind, options, message = WRONG[case]
    saved(tmp_path, kind=kind, **options)
    model = get_peft_model(models.base("zoo"), LoraConfig(**FIRST))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(trimtab.TrimtabError, match=message):
        hotswap_adapter(model, tmp_path, "default")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_preparing():
    model = get_peft_model(models.base("zoo"), LoraConfig(**FIRST))
    with pytest.raises(trimtab.AdapterError, match=r"`target_rank`=3 is less than there is: 'emb \(4\)', 'lin0"):
        prepare_model_for_compiled_hotswap(model, target_rank=3)
    with pytest.raises(trimtab.AdapterError, match="compiled already"):
        prepare_model_for_compiled_hotswap(torch.compile(model), target_rank=6)
    with pytest.warns(trimtab.TrimtabWarning, match="compiled already"):
        prepare_model_for_compiled_hotswap(torch.compile(model), target_rank=6, check_compiled="warn")
    experts = get_peft_model(models.base("zoo"), LoraConfig(target_parameters=["experts.up"], target_modules=[]))
    with pytest.raises(trimtab.AdapterError, match=r"kept apart and cannot grow: 'experts\.up'"):
        prepare_model_for_compiled_hotswap(experts, target_rank=9)
    with pytest.raises(trimtab.AdapterError, match="no adapter layers"):
        prepare_model_for_compiled_hotswap(models.base("zoo"))
    config = LoraConfig(**FIRST)
    prepare_model_for_compiled_hotswap(
        get_peft_model(models.base("zoo"), LoraConfig(**FIRST)), target_rank=7, config=config
    )
    assert (config.r, config.lora_alpha) == (7, 14)

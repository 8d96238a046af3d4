"""`add_weighted_adapter`: the numbers of PyPI `peft`, right for one adapter and for negative weights, or refused."""

import warnings

import pytest
import torch
from torch import nn

import trimtab
from trimtab.combine import RULES, TYPES

FACTORS = ["linear", "ties", "magnitude_prune"]
PRODUCTS = ["svd", "ties_svd", "magnitude_prune_svd"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.linear = nn.Linear(6, 5)
        self.conv = nn.Conv2d(3, 4, 3)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.attention = nn.MultiheadAttention(8, 2)


LAYERS = ["words", "linear", "conv"]


def adapted(library=trimtab, first=None, second=None):
    """A model with LoRA adapters x and y whose tensors are the same, whichever library made them."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 6, "target_modules": LAYERS, "init_lora_weights": False}
    model = library.get_peft_model(Net(), library.LoraConfig(**options | (first or {})), "x")
    model.add_adapter("y", library.LoraConfig(**options | {"lora_alpha": 4} | (second or {})))
    fill(model)
    return model


def fill(model):
    generator = torch.Generator()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.normal_(generator=generator.manual_seed(sum(map(ord, name))))


def update(model, layer, name):
    return model.base_model.model.get_submodule(layer).get_delta_weight(name).detach()


CASES = {
    "plain": ({}, {}),
    "rsLoRA": ({}, {"use_rslora": True}),
    "scales by layer": ({"alpha_pattern": {"linear": 1}}, {"alpha_pattern": {"conv": 9}}),
    "other targets": ({}, {"target_modules": ["linear"]}),
    "other ranks": ({}, {"r": 3}),
}


@pytest.mark.parametrize("weights", [(1.0, 0.5), (-0.7, 1.3), (-1.0, -2.0)])
@pytest.mark.parametrize(
    ("kind", "case"),
    [(k, c) for k in ("cat", *FACTORS, *PRODUCTS) for c in CASES if not (k in FACTORS and c == "other ranks")],
)
def test_the_numbers_are_those_of_peft(kind, case, weights):
    peft = pytest.importorskip("peft")
    for options in ({}, {"majority_sign_method": "frequency"}, {"svd_rank": 1}, {"svd_clamp": 0.8}):
        if options and not ("svd" in kind or "ties" in kind):
            continue
        models = [adapted(library, *CASES[case]).double() for library in (trimtab, peft)]  # a clamped svd needs it
        for model in models:
            model.add_weighted_adapter(["x", "y"], list(weights), "z", kind, density=0.5, **options)
        ours, theirs = models
        if case != "other targets":  # there, ours has the rank that each layer needs
            assert ours.peft_config["z"].r == theirs.peft_config["z"].r
        for layer in LAYERS:
            theirs.set_adapter("z")
            wanted = update(theirs, layer, "z")
            error = (update(ours, layer, "z") - wanted).abs().max() / wanted.abs().max()
            assert error <= 1e-5, (layer, options)


@pytest.mark.parametrize("kind", TYPES)
def test_one_adapter_of_weight_one_is_itself(kind):
    model = adapted()
    model.add_weighted_adapter(["x"], [1.0], "z", kind, density=1.0)
    for layer in LAYERS:
        torch.testing.assert_close(update(model, layer, "z"), update(model, layer, "x"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_exact_kinds_add_updates_with_their_signs(kind):
    model = adapted()
    options = {"svd_rank": 5} if kind == "svd" else {}
    model.add_weighted_adapter(["x", "y"], [2.0, -0.5], "z", kind, **options)
    for layer in LAYERS:
        wanted = 2 * update(model, layer, "x") - 0.5 * update(model, layer, "y")
        torch.testing.assert_close(update(model, layer, "z"), wanted, rtol=1e-4, atol=1e-4)
    inputs = torch.randn(3, 6)
    layer = model.base_model.model.linear
    outputs = {}
    for name in "xyz":
        model.set_adapter(name)
        outputs[name] = layer(inputs) - layer.base_layer(inputs)
    torch.testing.assert_close(outputs["z"], 2 * outputs["x"] - 0.5 * outputs["y"], rtol=1e-4, atol=1e-4)


def test_adapters_may_stand_on_different_layers():
    model = adapted(first={"target_modules": ["words", "linear"]}, second={"target_modules": "conv|linear"})
    model.add_weighted_adapter(["x", "y"], [1.0, 2.0], "z", "cat")
    assert sorted(model.peft_config["z"].target_modules) == ["conv", "linear", "words"]
    torch.testing.assert_close(update(model, "conv", "z"), 2 * update(model, "conv", "y"))
    torch.testing.assert_close(update(model, "words", "z"), update(model, "words", "x"))


def test_what_is_combined_can_be_saved_and_loaded(tmp_path):
    model = adapted(second={"target_modules": ["linear"], "r": 3, "use_rslora": True})
    model.add_weighted_adapter(["x", "y"], [1.0, 2.0], "z", "cat")
    model.save_pretrained(tmp_path, selected_adapters=["z"])
    torch.manual_seed(0)
    again = trimtab.PeftModel.from_pretrained(Net(), tmp_path / "z")
    for layer in LAYERS:
        assert torch.equal(update(again, layer, "default"), update(model, layer, "z"))


def test_a_gain_of_the_layer_is_kept():
    model = adapted(first={"target_modules": ["attention"]}, second={"target_modules": ["attention"]})
    model.add_weighted_adapter(["x"], [1.0], "z", "linear")
    for layer in ("attention", "attention.out_proj"):
        torch.testing.assert_close(update(model, layer, "z"), update(model, layer, "x"), rtol=1e-5, atol=1e-5)


def test_dare_keeps_the_expectation():
    torch.manual_seed(0)
    tensors, weights = [torch.randn(40), torch.randn(40)], torch.tensor([1.0, -2.0])
    many = torch.stack([RULES["dare_linear"](tensors, weights, 0.5, "") for _ in range(4000)])
    torch.testing.assert_close(many.mean(0), RULES["linear"](tensors, weights, 1.0, ""), rtol=0, atol=0.2)


def test_the_new_adapter_is_inactive_and_frozen():
    model = adapted()
    model.add_weighted_adapter(["x", "y"], [1.0, 1.0], "z")
    assert model.active_adapters == ["x"]
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".z." in n)


REFUSED = {
    "LoRA and DoRA": ({"second": {"use_dora": True}}, {}, "of different methods: 'Lora', 'Dora'"),
    "DoRA": ({"first": {"use_dora": True}, "second": {"use_dora": True}}, {}, "lora_magnitude_vector"),
    "a bias": ({"second": {"lora_bias": True, "target_modules": ["linear"]}}, {}, "lora_B"),
    "modules in full": ({"second": {"modules_to_save": ["grouped"]}}, {}, "modules_to_save"),
    "a changed base": ({"second": {"init_lora_weights": "pissa", "target_modules": ["linear"]}}, {}, "base weight"),
    "ranks that differ": ({"second": {"r": 3}}, {"combination_type": "linear"}, r"ranks \[2, 3\] differ"),
    "groups": ({"first": {"target_modules": ["grouped"]}, "second": {"target_modules": ["grouped"]}}, {}, "grouped"),
    "a kind": ({}, {"combination_type": "sum"}, "'sum' is unknown; choose one of 'svd'"),
    "no density": ({}, {"combination_type": "ties"}, "density"),
    "a density": ({}, {"combination_type": "ties", "density": 2.0}, "density"),
    "an election": ({}, {"majority_sign_method": "none"}, "'total', 'frequency'"),
    "too few weights": ({}, {"weights": [1.0]}, "2 `adapters`, 1 `weights`"),
    "NaN": ({}, {"weights": [1.0, float("nan")]}, "finite"),
    "an adapter": ({}, {"adapters": ["x", "w"]}, "no adapter is called 'w'"),
    "a name that is taken": ({}, {"adapter_name": "y"}, "already has an adapter 'y'"),
    "a rank": ({}, {"svd_rank": 0}, "svd_rank"),
    "a quantile": ({}, {"svd_clamp": 2.0}, "svd_clamp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_defined_is_refused_with_the_reason(case):
    how, options, reason = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted(**how)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(trimtab.TrimtabError, match=reason):
        model.add_weighted_adapter(**{"adapters": ["x", "y"], "weights": [1.0, 1.0], "adapter_name": "z"} | options)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert set(model.peft_config) == {"x", "y"}


def test_other_methods_are_refused():
    model = trimtab.get_peft_model(Net(), trimtab.LoHaConfig(target_modules=["linear"]), "x", mixed=True)
    model.add_adapter("y", trimtab.LoraConfig(target_modules=["linear"]))
    with pytest.raises(trimtab.AdapterError, match=r"LoHa adapters cannot be combined.*'Lora'"):
        model.add_weighted_adapter(["x"], [1.0], "z")
    with pytest.raises(trimtab.AdapterError, match="different methods: 'LoHa', 'Lora'"):
        model.add_weighted_adapter(["x", "y"], [1.0, 1.0], "z")

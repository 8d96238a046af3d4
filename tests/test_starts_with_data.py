"""Starts that look at data, at gradients or at minor directions: factors are PEFT's, and the base keeps the rest."""

import copy
import sys
import types

import peft
import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.codecs import NF4
from trimtab.inits.corda import CordaConfig, preprocess_corda
from trimtab.inits.directions import Directions
from trimtab.inits.eva import get_eva_state_dict, initialize_lora_eva_weights
from trimtab.inits.loftq import CODECS, replace_lora_weights_loftq
from trimtab.inits.lora_ga import LoraGAConfig, preprocess_loraga


class Net(nn.Module):
    def __init__(self, inp=6, out=10):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(inp, out), nn.Linear(out, 4)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def batches():
    torch.manual_seed(1)
    found = [torch.randn(1, 9, 6) for _ in range(2)]
    for x in found:
        x[0, 0, 0] = 5  # the largest magnitude is positive: PEFT takes the largest value for it
    return found


def layers(model):
    return [m for m in (model.base_model.model.one, model.base_model.model.two) if hasattr(m, "lora_A")]


def same_start(ours, theirs, tolerance=1e-3):
    """The same factors, but for the signs of singular vectors; and a base that keeps the rest."""
    for one, other in zip(layers(ours), layers(theirs), strict=True):
        for key in ("lora_A", "lora_B"):
            found, expected = (getattr(m, key)["default"].weight.abs() for m in (one, other))
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(ours(batches()[0]), Net()(batches()[0]))


# CorDA
@pytest.fixture
def their_corda(monkeypatch):
    """PEFT's, which needs the package attrs for a class of three fields; any decorator that makes one will do."""
    if "attr" not in sys.modules:
        import dataclasses

        stand_in = types.ModuleType("attr")
        stand_in.dataclass = dataclasses.dataclass
        monkeypatch.setitem(sys.modules, "attr", stand_in)
    return pytest.importorskip("peft.tuners.lora.corda").preprocess_corda


@pytest.mark.parametrize("method", ["ipm", "kpm"])
@torch.no_grad()
def test_corda_begins_as_in_peft(method, their_corda):
    made = []
    for library, prepare in ((trimtab, preprocess_corda), (peft, their_corda)):
        net = Net()
        options = CordaConfig if library is trimtab else peft.tuners.lora.config.CordaConfig
        config = library.LoraConfig(
            r=3, lora_alpha=6, target_modules=["one"], init_lora_weights="corda",
            corda_config=options(corda_method=method),
        )  # fmt: skip
        prepare(net, config, run_model=lambda net=net: [net(x) for x in batches()])
        made.append(library.get_peft_model(net, config))
    same_start(*made)


@torch.no_grad()
def test_what_corda_found_is_read_from_files_the_next_time(tmp_path):
    def start(**options):
        net, calls = Net(), []
        config = LoraConfig(r=2, target_modules=["one"], init_lora_weights="corda", corda_config=options)
        preprocess_corda(net, config, run_model=lambda: calls.append([net(x) for x in batches()]))
        return get_peft_model(net, config).base_model.model.one.lora_A["default"].weight, len(calls)

    first, calls = start(cache_file=str(tmp_path / "cache"), covariance_file=str(tmp_path / "covariance"))
    assert calls == 1
    for option in ("cache_file", "covariance_file"):
        again, calls = start(**{option: str(tmp_path / option.removesuffix("_file"))})
        assert calls == 0
        torch.testing.assert_close(again, first)
    half, _ = start(use_float16_for_covariance=True)
    torch.testing.assert_close(half.abs(), first.abs(), rtol=0.2, atol=0.02)


# LoRA-GA
@pytest.mark.parametrize("options", [
    {}, {"scale": "unit"}, {"scale": "gd_scale"}, {"scale": "weight_svd"}, {"direction": "ArBr"},
    {"direction": "A2rBr", "stable_gamma": 9},
])  # fmt: skip
def test_lora_ga_begins_as_in_peft(options):
    made = []
    for library, prepare in ((trimtab, preprocess_loraga), (peft, peft.preprocess_loraga)):
        net = Net()
        config = library.LoraConfig(
            r=2, lora_alpha=6, target_modules=["one", "two"], init_lora_weights="lora_ga",
            lora_ga_config=(LoraGAConfig if library is trimtab else peft.LoraGAConfig)(**options),
        )  # fmt: skip

        def step(net=net):
            for x in batches():
                net(x).square().mean().backward()

        prepare(net, config, step)
        made.append(library.get_peft_model(net, config))
    same_start(*made, tolerance=1e-2)


def test_lora_ga_leaves_the_model_as_it_was_and_reads_its_file(tmp_path):
    net, calls = Net(), []
    net.two.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    config = LoraConfig(
        r=2, target_modules=["one"], init_lora_weights="lora_ga", lora_ga_config={"direction": "random"}
    )

    def step():
        calls.append(net(batches()[0]).sum().backward())

    for _ in range(2):
        preprocess_loraga(net, config, step, cache_file=str(tmp_path / "gradients"))
    assert len(calls) == 1
    assert [k for k, p in net.named_parameters() if not p.requires_grad] == ["two.weight"]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert not net.one._forward_hooks
    model = get_peft_model(net, config)
    assert not hasattr(model.base_model.model.one.base_layer, "_peft_loraga_grad")
    torch.testing.assert_close(model(batches()[0]), Net()(batches()[0]))


def test_gpt2_and_quantised_layers_have_gradients_too():
    from trimtab.codecs import Int8, quantize_

    config = LoraConfig(r=2, init_lora_weights="lora_ga", target_modules=["c_attn"])
    found = []
    for quantised in (False, True):
        model = models.base("gpt2")
        if quantised:
            quantize_(model, Int8(), ["c_attn"])
        preprocess_loraga(model, config, lambda model=model: model(**models.inputs("gpt2")).loss.backward())
        found.append(model.transformer.h[0].attn.c_attn._peft_loraga_grad)
    plain = models.base("gpt2")
    plain(**models.inputs("gpt2")).loss.backward()
    torch.testing.assert_close(found[0].T, plain.transformer.h[0].attn.c_attn.weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.1 * found[0].abs().max().item())


# MiCA
@torch.no_grad()
def test_mica_begins_as_in_peft():
    made = [
        library.get_peft_model(Net(), library.LoraConfig(r=3, target_modules=["one", "two"], init_lora_weights="mica"))
        for library in (trimtab, peft)
    ]
    same_start(*made)
    ours, theirs = ([k for k, p in m.named_parameters() if p.requires_grad] for m in made)
    assert ours == theirs
    assert not any("lora_B" in k for k in ours)


def test_what_cannot_be():
    def prepared(start, **options):
        return LoraConfig(r=2, target_modules=["one"], init_lora_weights=start, **options)

    wrong = {
        "preprocess_corda has not looked at the base": (lambda: get_peft_model(Net(), prepared("corda"))),
        "preprocess_loraga has not looked at the base": (lambda: get_peft_model(Net(), prepared("lora_ga"))),
        "True is not 'corda', so there is nothing to prepare": (lambda: preprocess_corda(Net(), prepared(True))),
        "needs `run_model`: neither": (lambda: preprocess_corda(Net(), prepared("corda"))),
        "nothing has reached 'one' in `run_model`": (lambda: preprocess_corda(Net(), prepared("corda"), lambda: None)),
        "nothing has reached 'one' in `train_step`": (
            lambda: preprocess_loraga(Net(), prepared("lora_ga"), lambda: None)
        ),
        "`corda_method`='x' is unknown": (lambda: prepared("corda", corda_config={"corda_method": "x"})),
        "2 `r`=8 directions are needed, and the gradient has 6": (
            lambda: get_peft_model(Net(), LoraConfig(r=4, target_modules=["one"], init_lora_weights="lora_ga"))
        ),
        "`direction`='x' is unknown.*`scale`='y' is unknown.*`stable_gamma`=0 must": (
            lambda: prepared("lora_ga", lora_ga_config={"direction": "x", "scale": "y", "stable_gamma": 0})
        ),
        "`r`=7 directions are needed, and W has 6": (
            lambda: get_peft_model(Net(), LoraConfig(r=7, target_modules=["one"], init_lora_weights="mica"))
        ),
    }
    for message, act in wrong.items():
        with pytest.raises(trimtab.TrimtabError, match=message):
            act()
    with pytest.warns(trimtab.TrimtabWarning, match="`corda_config` has no effect"):
        LoraConfig(corda_config={})


# EVA
EVA = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": None, "show_progress_bar": False}


def uneven():
    """Inputs that vary in one direction, so that layers differ in how many they need."""
    torch.manual_seed(1)
    return [{"x": torch.randn(64, 6) * torch.tensor([5, 0.1, 0.1, 0.1, 0.1, 0.1])} for _ in range(4)]


def eva(library=trimtab, net=Net, r=2, targets=("one", "two"), **options):
    config = library.LoraConfig(
        r=r, lora_alpha=4, target_modules=list(targets), init_lora_weights="eva", eva_config=options
    )
    return library.get_peft_model(net(), config)


@pytest.mark.parametrize("options", [{}, {"adjust_scaling_factors": False, "rho": 1.5}, {"whiten": True, "r": 3}])
def test_eva_begins_as_in_peft(options, tmp_path):
    made = {}
    for library in (trimtab, peft):
        made[library] = eva(library, **options)
        (initialize_lora_eva_weights if library is trimtab else peft.initialize_lora_eva_weights)(
            made[library], uneven(), **EVA
        )
    ours, theirs = (made[library].peft_config["default"] for library in (trimtab, peft))
    assert ours.rank_pattern == theirs.rank_pattern != {}
    assert ours.alpha_pattern == theirs.alpha_pattern
    for one, other in zip(layers(made[trimtab]), layers(made[peft]), strict=True):
        a, b = one.lora_A["default"].weight, other.lora_A["default"].weight
        assert a.shape == b.shape
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1), rtol=1e-2, atol=0)
        assert torch.cosine_similarity(a, b).abs().min() > 0.98
        assert one.scaling == other.scaling
    x = uneven()[0]["x"]
    torch.testing.assert_close(made[trimtab](x), Net()(x))
    models.shake(made[trimtab]).save_pretrained(tmp_path)
    for library in (trimtab, peft):
        again = library.PeftModel.from_pretrained(Net(), str(tmp_path))
        torch.testing.assert_close(again(x), made[trimtab](x))


def test_directions_are_those_of_all_rows_at_once():
    rows = torch.randn(90, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8) + 3
    found = Directions(7, 0.99)
    for part in rows.split([20, 5, 65]):
        found.add(part)
    centred = rows - rows.mean(0)
    s, v = torch.linalg.svd(centred, full_matrices=False)[1:]
    torch.testing.assert_close(found.s, s)
    torch.testing.assert_close(found.v.abs(), v.abs(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.tensor(found.shares), s.square() / centred.square().sum())


def test_tokens_that_count_and_inputs_that_layers_share():
    config = LoraConfig(
        r=2, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights="eva", task_type="CAUSAL_LM"
    )
    batch = models.inputs("llama") | {"labels": models.inputs("llama")["input_ids"].clone()}
    batch["labels"][:, :3] = -100
    model, given = models.base("llama"), []
    layer = model.model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda m, args: given.append(args[0]))
    found = get_eva_state_dict(model, [batch], config, show_progress_bar=False)
    hook.remove()
    assert list(found) == [
        f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    ]
    for i in (0, 1):
        q, k = (found[f"model.layers.{i}.self_attn.{n}_proj"] for n in "qk")
        most = min(len(q), len(k))
        assert torch.equal(q[:most], k[:most])
    rows = given[0][:, 3:].flatten(0, 1).detach()
    expected = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    for a, b in zip(found["model.layers.1.mlp.down_proj"], expected, strict=False):
        assert torch.dot(a, b).abs() > 0.98


def test_a_layer_without_a_rank_is_left_alone(tmp_path):
    model = eva()
    one, two = (name for name, m in model.named_modules() if hasattr(m, "lora_A"))
    state = {one: torch.eye(6)[:3], two: torch.empty(0, 10)}
    initialize_lora_eva_weights(model, eva_state_dict=state)
    assert model.peft_config["default"].target_modules == ["one"]
    assert [k for k, p in model.named_parameters() if p.requires_grad] == [
        f"base_model.model.one.lora_{x}.default.weight" for x in "AB"
    ]
    assert torch.equal(layers(model)[0].lora_A["default"].weight, torch.eye(6)[:3])
    models.shake(model).save_pretrained(tmp_path)
    again = trimtab.PeftModel.from_pretrained(Net(), tmp_path)
    x = uneven()[0]["x"]
    torch.testing.assert_close(again(x), model(x))
    assert again.peft_config["default"].rank_pattern == {"one": 3}


def test_eva_with_dora_has_no_effect_at_first():
    config = LoraConfig(r=2, target_modules=["one", "two"], init_lora_weights="eva", use_dora=True)
    model = get_peft_model(Net(), config)
    initialize_lora_eva_weights(model, uneven(), **EVA)
    x = uneven()[0]["x"]
    torch.testing.assert_close(model(x), Net()(x))


def test_what_eva_cannot_do():
    model = eva()
    wrong = {
        "EVA needs data: pass `dataloader`": lambda: initialize_lora_eva_weights(model),
        "no data has reached 'base_model.model.one', 'base_model.model.two'": (
            lambda: initialize_lora_eva_weights(model, [], **EVA)
        ),
        "a Net has no adapters": lambda: initialize_lora_eva_weights(Net(), []),
        "no adapter is called 'x'": lambda: initialize_lora_eva_weights(model, [], adapter_name="x"),
        "`eva_state_dict` means 'x'": lambda: initialize_lora_eva_weights(model, eva_state_dict={"x": 1}),
        "`peft_config` is needed": lambda: get_eva_state_dict(Net(), []),
        "`rho`=0.5 must be at least 1; `eva_config`: `tau`=1 must": lambda: eva(rho=0.5, tau=1),
    }
    for message, act in wrong.items():
        with pytest.raises(trimtab.TrimtabError, match=message):
            act()


# LoftQ
@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_loftq_begins_with_what_quantising_loses(bits):
    w = Net(64, 48).one.weight
    gaps = []
    for rounds in (1, 4):
        options = {"loftq_bits": bits, "loftq_iter": rounds}
        config = LoraConfig(r=8, lora_alpha=4, target_modules=["one"], init_lora_weights="loftq", loftq_config=options)
        layer = layers(get_peft_model(Net(64, 48), config))[0]
        q, codec = layer.base_layer.weight, CODECS[bits]
        torch.testing.assert_close(codec.decode(codec.encode(q), 64), q)
        gaps.append((layer.effective()[0] - w).norm())
    assert gaps[1] < gaps[0] < (codec.decode(codec.encode(w), 64) - w).norm()


@torch.no_grad()
def test_a_quantised_model_gets_back_what_it_lost(tmp_path):
    from trimtab.codecs import quantize_

    base = models.base("gpt2")
    base.save_pretrained(tmp_path)
    batch = {k: v for k, v in models.inputs("gpt2").items() if k != "labels"}
    expected = base(**batch).logits

    def made():
        config = LoraConfig(r=12, target_modules=["c_attn", "c_fc", "c_proj"], task_type="CAUSAL_LM")
        return get_peft_model(quantize_(models.base("gpt2"), NF4(blocksize=16)), config).eval()

    model = made()
    gap = (model(**batch).logits - expected).norm()
    replace_lora_weights_loftq(model, tmp_path)
    assert (model(**batch).logits - expected).norm() < 0.5 * gap
    other, asked = made(), []
    replace_lora_weights_loftq(other, tmp_path / "model.safetensors", callback=lambda m, n: asked.append(n))
    assert sorted(asked) == sorted(layer.path for layer in other.base_model.layers)
    torch.testing.assert_close((other(**batch).logits - expected).norm(), gap)


def test_what_loftq_cannot_do(tmp_path):
    from trimtab.codecs import quantize_

    def quantised(**options):
        return get_peft_model(quantize_(models.base("llama")), LoraConfig(target_modules=["q_proj"], **options))

    wrong = {
        "`loftq_bits`=3 must be one of 4, 8; .*`loftq_iter`=0": (
            lambda: LoraConfig(init_lora_weights="loftq", loftq_config={"loftq_bits": 3, "loftq_iter": 0})
        ),
        "stored as nf4 already": lambda: quantised(init_lora_weights="loftq"),
        "stands on no quantised linear layer": lambda: replace_lora_weights_loftq(eva()),
        "no model.safetensors.index.json": lambda: replace_lora_weights_loftq(quantised(), tmp_path),
    }
    for message, act in wrong.items():
        with pytest.raises(trimtab.TrimtabError, match=message):
            act()


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga", "loftq", "mica"])
def test_adapters_on_embeddings_begin_without_effect(start):
    """Files of PEFT have such adapters beside those that data has begun."""
    net = nn.Sequential(nn.Embedding(9, 6))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], init_lora_weights=start))
    ids = torch.arange(9)
    torch.testing.assert_close(model(ids), model.unload()(ids))

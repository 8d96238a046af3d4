"""The weight methods against their own equation, on every site and in every number format, and against PyPI `peft`."""

import copy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import trimtab
from trimtab import ConfigError
from trimtab.config import CONFIGS
from trimtab.layer import AdapterLayer, Router, Shared
from trimtab.method import METHODS, STARTS
from trimtab.methods.ia3 import IA3Config
from trimtab.methods.loha import LoHaConfig
from trimtab.methods.lokr import LoKrConfig, split
from trimtab.methods.lora import LoraConfig
from trimtab.methods.vera import VeraConfig
from trimtab.route import fast_mode
from trimtab.sites import ParameterSite, Site, site_of


class Bare(nn.Module):
    """A module that reads a bare parameter: (out, in), or (experts, out, in)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


class Attention(nn.MultiheadAttention):
    """Self-attention of one argument."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


@dataclass
class Row:
    """A layer, its input's shape, and what `peft` is able to adapt of it."""

    layer: Any
    x: tuple[int, ...]
    peft: tuple[str, ...] = ()


ALL = ("IA3", "LOHA", "LOKR", "VERA", "LORA")
SITES = {
    "linear": Row(lambda: nn.Linear(24, 40), (3, 24), ALL),
    "linear without bias": Row(lambda: nn.Linear(24, 40, bias=False), (2, 3, 24), ALL),
    "Conv1D": Row(lambda: Conv1D(40, 24), (2, 3, 24), ("IA3", "VERA", "LORA")),
    "embedding": Row(lambda: nn.Embedding(32, 24), (3, 5), ("LORA",)),
    "conv1d": Row(lambda: nn.Conv1d(12, 16, 3, padding=1), (2, 12, 9), ("LOHA", "LOKR", "LORA")),
    "conv2d": Row(lambda: nn.Conv2d(12, 16, 3, stride=2), (2, 12, 7, 7), ("IA3", "LOHA", "LOKR", "LORA")),
    "conv2d point": Row(lambda: nn.Conv2d(12, 16, 1), (2, 12, 5, 5), ("IA3", "LOHA", "LOKR", "LORA")),
    "conv2d circular": Row(lambda: nn.Conv2d(12, 16, 3, padding=1, padding_mode="circular"), (2, 12, 5, 5)),
    "conv2d grouped": Row(lambda: nn.Conv2d(12, 16, 3, groups=2), (2, 12, 5, 5), ("IA3", "LOHA", "LOKR")),
    "conv3d": Row(lambda: nn.Conv3d(4, 8, 2), (2, 4, 3, 3, 3), ("IA3", "LORA")),
    "attention": Row(lambda: Attention(24, 2), (5, 2, 24)),
    "parameter": Row(lambda: Bare(40, 24), (3, 24)),
    "experts": Row(lambda: Bare(3, 40, 24), (3, 5, 24)),
}

METHOD_ROWS = {
    "lora": partial(LoraConfig, r=4, lora_alpha=6),
    "rslora": partial(LoraConfig, r=4, lora_alpha=6, use_rslora=True),
    "dora": partial(LoraConfig, r=4, use_dora=True),
    "lora_bias": partial(LoraConfig, r=4, lora_bias=True),
    "ia3": partial(IA3Config, feedforward_modules=[]),
    "ia3 feedforward": partial(IA3Config, feedforward_modules=["layer"]),
    "loha": partial(LoHaConfig, r=4, alpha=6),
    "loha rank 1": partial(LoHaConfig, r=1, alpha=6),
    "loha effective": partial(LoHaConfig, r=3, use_effective_conv2d=True),
    "lokr": partial(LoKrConfig, r=1, alpha=2),
    "lokr full": partial(LoKrConfig, r=16, alpha=20),
    "lokr both": partial(LoKrConfig, r=1, decompose_both=True, decompose_factor=4),
    "lokr effective": partial(LoKrConfig, r=1, use_effective_conv2d=True, decompose_factor=3),
    "vera": partial(VeraConfig, r=6),
}

NEVER = {  # (method, site): the method's own reason to refuse
    *(("lora_bias", site) for site in ("embedding", "attention", "parameter", "experts")),
    ("dora", "experts"),
}
CELLS = [(m, s) for m in METHOD_ROWS for s in SITES if (m, s) not in NEVER]
cells = pytest.mark.parametrize(("method", "site"), CELLS)
# The largest difference, as a part of the largest output: a few roundings of the format.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}


def input_of(site: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if site == "embedding":
        return torch.randint(0, 32, SITES[site].x, generator=generator)
    return torch.randn(*SITES[site].x, generator=generator).to(dtype)


def add(layer: AdapterLayer, name: str, cfg: Any, empty: bool = False, random: bool = True) -> None:
    method, cfg = METHODS[cfg.kind], cfg.at("model.layer")
    slots = method.slots(layer.site, cfg)
    shapes = {slot.name: slot.shape for slot in slots.values() if slot.shared}
    shared = {key: layer._modules.get(key) or Shared() for key in shapes}
    for key, start in method.shared(shapes, cfg, {"model.layer": layer.site}).items():
        shared[key].put(name, "", start.to(layer.site.dtype), trainable=False)
    layer.add(name, method, cfg, slots, shared, empty, autocast=False)
    with torch.no_grad():
        if not empty:
            method.start(layer.adapters[name])
        if random and not empty:
            generator = torch.Generator().manual_seed(len(layer.adapters))
            for _, p in layer.parameters_of(name):
                p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p.dtype))


def site_in(base: nn.Module) -> Site:
    return ParameterSite(base) if isinstance(base, Bare) else site_of(base)


def build(site: str, *cfgs: Any, dtype: torch.dtype = torch.float32, **options: Any) -> AdapterLayer:
    torch.manual_seed(0)
    base = SITES[site].layer().to(dtype).requires_grad_(False)
    layer = AdapterLayer(base, site_in(base), "model.layer", Router())
    names = [f"adapter{i}" for i in range(len(cfgs))]
    for name, cfg in zip(names, cfgs, strict=True):
        add(layer, name, cfg, **options)
    layer.activate(names, trainable=True)
    return layer


def by_definition(layer: AdapterLayer, x: Tensor, names: list[str] | None = None) -> Tensor:
    w, b = layer.merged_weight(list(layer.adapters) if names is None else names)
    dtype = layer.site.dtype
    return layer.site.call(w.to(dtype), None if b is None else b.to(dtype), x)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    scale = wanted.abs().max().clamp(min=1)
    assert (found - wanted).abs().max() <= TOLERANCE[wanted.dtype] * scale


# the equation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # float64: with the gradients
@cells
def test_forward_is_the_equation(method, site, dtype):
    layer, x = build(site, METHOD_ROWS[method](), dtype=dtype), input_of(site, dtype)
    with torch.no_grad():
        found, base = layer(x), layer.base_layer(x)
        assert_near(found, by_definition(layer, x))
        assert not torch.allclose(found, base, atol=1e-3)


@cells
def test_merge_keeps_the_output_and_unmerge_the_bits(method, site):
    layer, x = build(site, METHOD_ROWS[method]()), input_of(site)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with torch.no_grad():
        wanted = layer(x)
        if not layer.check_merge(["adapter0"], safe=True):
            layer.merge_in(["adapter0"])
            assert_near(layer(x), wanted)
            layer.unmerge()
        else:
            refused = {"conv2d grouped": ("lora", "rslora", "dora", "lora_bias"), "linear without bias": ("lora_bias",)}
            assert method in refused[site]
        assert torch.equal(layer(x), wanted)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@cells
def test_gradients_are_those_of_the_equation(method, site):
    layer, x = build(site, METHOD_ROWS[method](), dtype=torch.float64), input_of(site, torch.float64)
    layer.eval()
    weights = torch.randn_like(layer(x))
    trained = {slot.key: p for slot, p in layer.parameters_of("adapter0") if slot.trainable}
    a, site_ = layer.adapters["adapter0"], layer.site
    w, b = a.method.weight(site_.weight(), a), a.method.bias(site_.bias, a)
    wanted = torch.autograd.grad((weights * site_.call(w, b, x)).sum(), list(trained.values()))
    found = torch.autograd.grad((weights * layer(x)).sum(), list(trained.values()))
    assert_near(layer(x), site_.call(w, b, x))
    for key, f, g in zip(trained, found, wanted, strict=True):
        assert g.abs().max() > 0, key
        torch.testing.assert_close(f, g, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@cells
def test_it_starts_without_effect(method, site):
    layer, x = build(site, METHOD_ROWS[method](), random=False), input_of(site)
    with torch.no_grad():
        assert_near(layer(x), layer.base_layer(x))
    layer(x).sum().backward()
    reached = [slot.name for slot, p in layer.parameters_of("adapter0") if p.grad is not None and p.grad.any()]
    assert reached


@pytest.mark.parametrize("site", ["linear", "conv2d", "conv2d grouped"])
@pytest.mark.parametrize("method", METHOD_ROWS)
def test_it_can_stay_on_meta(method, site):
    layer = build(site, METHOD_ROWS[method](), empty=True)
    tensors = [p for _, p in layer.parameters_of("adapter0")]
    assert tensors
    assert all(p.is_meta for p in tensors)
    assert layer.check_merge(["adapter0"], safe=False)


@pytest.mark.parametrize("site", ["linear", "conv2d grouped"])
@pytest.mark.parametrize("second", ["lora", "ia3 feedforward", "loha", "vera", "dora"])
@pytest.mark.parametrize("first", METHOD_ROWS)
def test_two_adapters_compose_in_the_order_of_activation(first, second, site):
    layer, x = build(site, METHOD_ROWS[first](), METHOD_ROWS[second]()), input_of(site)
    with torch.no_grad():
        assert_near(layer(x), by_definition(layer, x, ["adapter0", "adapter1"]))
        layer.activate(["adapter1", "adapter0"])
        assert_near(layer(x), by_definition(layer, x, ["adapter1", "adapter0"]))


def test_grouped_convolutions_add_dense_updates_once():
    cfgs = [METHOD_ROWS["lora"](), METHOD_ROWS["lora"](), METHOD_ROWS["loha"]()]
    layer, x = build("conv2d grouped", *cfgs), input_of("conv2d grouped")
    with torch.no_grad():
        assert_near(layer(x), by_definition(layer, x))


# routes
@pytest.mark.parametrize(
    ("method", "site", "route"),
    [
        ("ia3", "conv3d", "shortcut"),
        ("ia3 feedforward", "linear", "shortcut"),
        ("ia3 feedforward", "embedding", "definition"),
        ("loha", "linear", "definition"),
        ("loha rank 1", "linear", "shortcut"),
        ("loha effective", "conv2d", "definition"),
        ("lokr", "linear", "shortcut"),
        ("lokr", "conv2d", "shortcut"),
        ("lokr", "conv2d grouped", "definition"),
        ("vera", "Conv1D", "shortcut"),
        ("vera", "embedding", "shortcut"),
        ("vera", "experts", "definition"),
    ],
)
def test_the_cheaper_form_is_taken_where_there_is_one(method, site, route):
    layer = build(site, METHOD_ROWS[method]())
    with fast_mode("off"):
        assert layer.plan(layer.active).route == route


def test_unbatched_images():
    for method in ("ia3", "ia3 feedforward", "lokr", "loha rank 1"):
        layer, x = build("conv2d", METHOD_ROWS[method]()), input_of("conv2d")
        with torch.no_grad():
            assert_near(layer(x[0]), layer(x)[0])


# dropout
def updates(method: Any, site: str = "linear", times: int = 60) -> Tensor:
    """The update of each output row in training, as a part of that in evaluation: (times, out)."""
    layer, x = build(site, method), input_of(site)
    with torch.no_grad():
        base = layer.eval()(x) - layer.base_layer(x)
        layer.train()
        parts = [(layer(x) - layer.base_layer(x)) / base for _ in range(times)]
    return torch.stack([p.flatten(0, -2).median(0).values for p in parts])


@pytest.mark.parametrize("r", [1, 4])  # the shortcut and the definition
def test_loha_rank_dropout_takes_rows_and_keeps_the_mean(r):
    kept = updates(LoHaConfig(r=r, rank_dropout=0.5))
    dropped = kept.abs() < 1e-3
    assert 0.35 < dropped.float().mean() < 0.65
    torch.testing.assert_close(kept.mean(1), torch.ones(len(kept)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_lokr_rank_dropout_takes_rows_and_rescales_if_asked(rescale):
    kept = updates(LoKrConfig(r=4, rank_dropout=0.5, rank_dropout_scale=rescale))
    dropped = kept.abs() < 1e-3
    assert 0.35 < dropped.float().mean() < 0.65
    found = kept.mean(1) if rescale else kept[~dropped]
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-2, rtol=0)


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_module_dropout_takes_the_whole_update(config):
    kept = updates(config(r=4, module_dropout=0.5))
    assert ((kept.abs() < 1e-3).all(1) | ((kept - 1).abs() < 1e-2).all(1)).all()
    assert 0.2 < (kept.abs() < 1e-3).all(1).float().mean() < 0.8


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_a_merge_in_training_drops_nothing(config):
    layer = build("linear", config(r=4, rank_dropout=0.9, module_dropout=0.9))
    w, _ = layer.eval().merged_weight(["adapter0"])
    assert torch.equal(layer.train().merged_weight(["adapter0"])[0], w)


def test_vera_dropout_acts_on_the_input_in_training():
    layer, x = build("linear", VeraConfig(r=6, vera_dropout=0.5)), input_of("linear")
    with torch.no_grad():
        assert not torch.equal(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


# configurations
OPTIONS = {
    "IA3": [{"feedforward_modules": []}, {"feedforward_modules": ["layer"]}],
    "LOHA": [{"r": 4, "alpha": 6}, {"r": 1}, {"r": 3, "use_effective_conv2d": True}],
    "LOKR": [
        {"r": 2, "alpha": 3},
        {"r": 99},
        {"r": 1, "decompose_both": True, "decompose_factor": 4},
        {"r": 1, "use_effective_conv2d": True},
        {"r": 1, "decompose_factor": 5},
    ],
    "VERA": [{"r": 6}, {"r": 6, "save_projection": False, "projection_prng_key": 7}],
}
THEIRS = {"IA3": peft.IA3Config, "LOHA": peft.LoHaConfig, "LOKR": peft.LoKrConfig, "VERA": peft.VeraConfig}


@pytest.mark.parametrize("kind", THEIRS)
def test_fields_and_defaults_are_those_of_peft(kind):
    ours, theirs = CONFIGS[kind](), THEIRS[kind]()
    assert {f.name for f in fields(ours)} == {f.name for f in fields(theirs)}
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LoHaConfig(r=0), "`r`=0 must be at least 1"),
        (lambda: LoHaConfig(rank_dropout=1.0), "`rank_dropout`=1.0 must be in [0, 1)"),
        (lambda: LoKrConfig(module_dropout=-0.1), "`module_dropout`=-0.1 must be in [0, 1)"),
        (lambda: LoKrConfig(decompose_factor=0), "`decompose_factor`=0 must be at least 1, or -1"),
        (lambda: LoKrConfig(init_weights="lycris"), "`init_weights`='lycris' is unknown"),
        (lambda: VeraConfig(r=-2), "`r`=-2 must be at least 1"),
        (lambda: VeraConfig(vera_dropout=2), "`vera_dropout`=2 must be in [0, 1)"),
        (lambda: VeraConfig(bias="some"), "`bias`='some' is unknown; choose one of 'none', 'all', 'vera_only'"),
        (lambda: IA3Config(target_modules=["q"], feedforward_modules=["fc"]), "should be a subset of `target_modules`"),
        (lambda: IA3Config(feedforward_modules="("), "`feedforward_modules`='(' is not a regular expression"),
    ],
)
def test_mistakes_are_told(make, text):
    with pytest.raises(ConfigError) as error:
        make()
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("inside", "path", "wanted"),
    [
        (["fc"], "h.0.mlp.fc", True),
        (["fc"], "h.0.mlp.fc2", False),
        (["mlp.fc"], "h.0.attn.fc", False),
        (r".*mlp\.fc", "h.0.mlp.fc", True),
        ("fc", "h.0.mlp.fc", False),
        (None, "h.0.mlp.fc", False),
    ],
)
def test_feedforward_modules_are_resolved_by_path(inside, path, wanted):
    cfg = IA3Config(feedforward_modules=inside)
    assert cfg.at(path).feedforward is wanted
    assert cfg.at(path).to_dict() == cfg.to_dict()


def test_ia3_fills_in_what_is_known_of_the_architecture():
    ia3 = METHODS["IA3"]
    cfg = IA3Config()
    ia3.fill(cfg, "llama")
    assert cfg.target_modules == ["k_proj", "v_proj", "down_proj"]
    assert cfg.feedforward_modules == ["down_proj"]
    down = ["down_proj"]
    cases = ((["k_proj"], []), (["k_proj", "mlp.down_proj"], down), ("all-linear", down))
    for targets, inside in cases:
        cfg = IA3Config(target_modules=targets)
        ia3.fill(cfg, "llama")
        assert cfg.target_modules == targets
        assert cfg.feedforward_modules == inside
    with pytest.raises(ConfigError, match="`feedforward_modules` is unset, and IA3 has no default"):
        ia3.fill(IA3Config(target_modules=["q"]), "x")


def test_ia3_files_name_feedforward_modules_among_the_targets():
    values = IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=["mlp.c_proj"]).to_dict()
    assert values["target_modules"] == ["c_attn", "c_proj", "mlp.c_proj"]
    assert peft.IA3Config(**values)


def test_ia3_scales_the_bias_with_the_output_only():
    layer = build("linear", METHOD_ROWS["ia3"](), METHOD_ROWS["ia3 feedforward"]())
    scaled, kept = (layer.merged_weight([name])[1] for name in layer.adapters)
    torch.testing.assert_close(scaled, layer.site.bias * layer.ia3_l["adapter0"].flatten())
    assert torch.equal(kept, layer.site.bias)


@pytest.mark.parametrize(
    ("config", "zero"),
    [
        (LoHaConfig(), {"hada_w2_b"}),
        (LoHaConfig(init_weights=False), set()),
        (LoKrConfig(r=1, decompose_both=True), {"lokr_w1_a"}),
        (LoKrConfig(r=1), {"lokr_w1"}),
        (LoKrConfig(r=1, init_weights="lycoris"), {"lokr_w2_b"}),
        (LoKrConfig(r=99, init_weights="lycoris"), {"lokr_w2"}),
        (LoKrConfig(init_weights=False), set()),
        (VeraConfig(), {"vera_lambda_b"}),
        (VeraConfig(init_weights=False), set()),
    ],
)
def test_what_starts_at_zero(config, zero):
    layer = build("linear", config, random=False)
    assert {slot.name for slot, p in layer.parameters_of("adapter0") if not p.any()} == zero


@pytest.mark.parametrize(
    ("dim", "factor", "wanted"),
    [(128, -1, (8, 16)), (360, 8, (8, 45)), (12, 4, (4, 3)), (20, 3, (2, 10)), (7, -1, (1, 7)), (6, 100, (2, 3))],
)
def test_lokr_splits_dimensions(dim, factor, wanted):
    assert split(dim, factor) == wanted


# PyPI peft
class Model(nn.Module):
    """One layer under test, and one that is not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.other = layer, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


BOTH_WAYS = [(k, o, s) for k in OPTIONS for o in range(len(OPTIONS[k])) for s in SITES if k in SITES[s].peft]


@pytest.mark.parametrize(("kind", "option", "site"), BOTH_WAYS)
def test_files_go_both_ways(kind, option, site, tmp_path):
    options = OPTIONS[kind][option]
    if kind == "LOKR" and site == "conv1d" and "use_effective_conv2d" in options:
        pytest.skip("peft cannot run it: it views a tensor that is not contiguous")
    torch.manual_seed(0)
    base, x = Model(SITES[site].layer()), input_of(site)
    theirs = peft.get_peft_model(copy.deepcopy(base), THEIRS[kind](target_modules=["layer"], **options)).eval()
    ours = trimtab.get_peft_model(copy.deepcopy(base), CONFIGS[kind](target_modules=["layer"], **options)).eval()
    trained, found = ({k: p for k, p in m.named_parameters() if p.requires_grad} for m in (theirs, ours))
    assert {k: p.shape for k, p in found.items()} == {k: p.shape for k, p in trained.items()}
    with torch.no_grad():
        assert_near(ours(x), theirs(x))
        for p in trained.values():
            p.add_(0.3 * torch.randn_like(p))
        wanted = theirs(x)
        assert not torch.allclose(wanted, base(x), atol=1e-3)
        theirs.save_pretrained(tmp_path / "theirs")
        loaded = trimtab.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs").eval()
        torch.testing.assert_close(loaded(x), wanted, atol=1e-5, rtol=0)
        loaded.save_pretrained(tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
        torch.testing.assert_close(back(x), wanted, atol=1e-5, rtol=0)
        assert peft.get_peft_model_state_dict(back).keys() == peft.get_peft_model_state_dict(theirs).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_vera_projections_are_those_of_peft_to_the_bit(dtype, autocast):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 20), nn.Linear(30, 6)

    options = {"r": 5, "target_modules": ["a", "b"], "projection_prng_key": 3}
    theirs = peft.get_peft_model(Two().to(dtype), peft.VeraConfig(**options), autocast_adapter_dtype=autocast)
    ours = trimtab.get_peft_model(Two().to(dtype), VeraConfig(**options), autocast_adapter_dtype=autocast)
    wanted = peft.get_peft_model_state_dict(theirs)
    found = trimtab.get_peft_model_state_dict(ours)
    for key in ("base_model.vera_A", "base_model.vera_B"):
        assert found[key].dtype == wanted[key].dtype
        assert torch.equal(found[key], wanted[key])


# starts
@pytest.mark.parametrize("site", [s for s in SITES if s not in ("embedding", "conv2d grouped")])
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_3", "olora", "orthogonal"])
def test_a_start_leaves_the_sum_as_it_was(start, site):
    torch.manual_seed(0)
    old = site_in(SITES[site].layer()).weight()
    layer = build(site, LoraConfig(r=4, lora_alpha=6, init_lora_weights=start), random=False)
    new, _ = layer.merged_weight(["adapter0"])
    torch.testing.assert_close(new, old, atol=1e-6, rtol=0)
    moved = (layer.site.weight() - old).abs().max()
    assert moved == 0 if start == "orthogonal" else moved > 1e-2
    assert all(p.any() for _, p in layer.parameters_of("adapter0"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_start_writes_the_base_in_its_own_format(dtype):
    layer = build("linear", LoraConfig(r=4, init_lora_weights="pissa"), dtype=dtype, random=False)
    assert layer.site.weight().dtype == dtype
    assert not layer.base_layer.weight.requires_grad


def test_pissa_takes_the_largest_singular_values():
    layer = build("linear", LoraConfig(r=4, init_lora_weights="pissa"), random=False)
    a = layer.adapters["adapter0"]
    taken = torch.linalg.svdvals(a.scale * a.B @ a.A)[:4]
    assert taken.min() >= torch.linalg.svdvals(layer.site.weight()).max() - 1e-5
    close = build("linear", LoraConfig(r=4, init_lora_weights="pissa_niter_16"), random=False)
    torch.testing.assert_close(close.site.weight().norm(), layer.site.weight().norm(), rtol=1e-2, atol=0)


def test_olora_starts_orthonormal():
    layer = build("linear", LoraConfig(r=4, init_lora_weights="olora"), random=False)
    b = layer.adapters["adapter0"].B
    torch.testing.assert_close(b.T @ b, torch.eye(4), atol=1e-5, rtol=0)


def test_ranks_beyond_those_of_the_weight_begin_without_effect():
    for start in ("pissa", "olora", "pissa_niter_2"):
        layer = build("linear", LoraConfig(r=30, lora_alpha=30, init_lora_weights=start), random=False)
        a = layer.adapters["adapter0"]
        assert not a.B[:, 24:].any()
        assert a.A[24:].any()
        assert layer.site.weight().abs().max() < 1e-5


def test_embeddings_keep_the_default_start():
    for start in sorted(STARTS.keys() - {"corda", "eva", "lora_ga", "loftq"}):  # which refuse them
        layer = build("embedding", LoraConfig(r=4, init_lora_weights=start), random=False)
        assert not layer.adapters["adapter0"].A.any()


@pytest.mark.parametrize(
    ("options", "site", "text"),
    [
        ({"init_lora_weights": "pissa"}, "conv2d grouped", "the weight of a grouped convolution is no single matrix"),
        ({"init_lora_weights": "orthogonal"}, "conv2d grouped", "the groups of a grouped convolution have no product"),
        ({"init_lora_weights": "pissa_niter_many"}, "linear", "'many' is not a number of iterations"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "linear", "`r`=3 must be even"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_anything_changes(options, site, text):
    with pytest.raises(ConfigError, match="cannot be used") as error:
        build(site, LoraConfig(**options))
    assert text in str(error.value)


def test_a_start_changes_the_base_of_an_adapter_without_values_too():
    cfg = LoraConfig(r=4, init_lora_weights="pissa")
    full, empty = build("linear", cfg, random=False), build("linear", cfg, empty=True)
    with torch.no_grad():
        METHODS["LORA"].start(empty.adapters["adapter0"])
    assert torch.equal(empty.site.weight(), full.site.weight())
    assert METHODS["LORA"].changes_base(cfg)
    assert not METHODS["LORA"].changes_base(LoraConfig(init_lora_weights="orthogonal"))


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(24, 40), lambda: nn.Embedding(32, 24)])
def test_files_with_a_start_go_both_ways(start, layer, tmp_path):
    torch.manual_seed(0)
    base = Model(layer())
    x = torch.randint(0, 32, (3, 5)) if isinstance(base.layer, nn.Embedding) else torch.randn(3, 24)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["layer"], "init_lora_weights": start}
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).eval()
    ours = trimtab.get_peft_model(copy.deepcopy(base), LoraConfig(**options)).eval()
    with torch.no_grad():
        weights = [m.base_model.model.layer.base_layer.weight for m in (ours, theirs)]
        torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
        wanted = theirs(x)
        theirs.save_pretrained(tmp_path / "theirs")
        for few in (False, True):
            loaded = trimtab.PeftModel.from_pretrained(
                copy.deepcopy(base), tmp_path / "theirs", low_cpu_mem_usage=few
            ).eval()
            torch.testing.assert_close(loaded(x), wanted, atol=1e-5, rtol=0)
        loaded.save_pretrained(tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
        torch.testing.assert_close(back(x), wanted, atol=1e-5, rtol=0)

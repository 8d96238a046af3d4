"""The fused LoRA linear against the reference: forward, every gradient, dropout, and when it is taken."""

import pytest
import torch
from tests.models import shake
from torch import nn

import trimtab
from trimtab import LoraConfig, explain, fast_mode, get_peft_model
from trimtab.fast.lora_linear import LoraLinear
from trimtab.layer import AdapterLayer

# The fused path adds up in another order: a few units in the last place of the largest value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_the_fastest_device():
    """The same function serves CPU and GPU; it is compared where this machine would run it."""
    with torch.device(DEVICE):
        yield


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(12, 20, bias=bias), nn.Linear(20, 6, bias=bias)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def net(dtype=torch.float32, adapters=1, bias=True, autocast=False, **options):
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": ["a", "b"]} | options
    base = Net(bias).to(dtype)
    model = get_peft_model(base, LoraConfig(**options), autocast_adapter_dtype=autocast)
    for i in range(1, adapters):
        model.add_adapter(f"more{i}", LoraConfig(**options | {"r": 4 + i, "lora_alpha": 3}))
    names = list(model.peft_config)
    model.set_adapter(names)
    return shake(model)


def outcome(model, mode, x):
    """The result and every gradient, that of x included."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    with fast_mode(mode):
        y = model(x)
        y.float().pow(2).sum().backward()
    return {"y": y, "x": x.grad} | {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def compare(model, x, dtype):
    assert {r.route for r in explain(model)} == {"fast:lora_linear"}
    fused, plain = outcome(model, "require", x), outcome(model, "off", x)
    assert fused.keys() == plain.keys()
    for key, value in fused.items():
        assert value.dtype == plain[key].dtype
        limit = TOLERANCE[dtype] * max(1.0, float(plain[key].detach().abs().amax() if plain[key].numel() else 0))
        torch.testing.assert_close(value, plain[key], rtol=0, atol=limit, msg=lambda m, k=key: f"{k}: {m}")


CASES = {
    "plain": {},
    "no bias": {"bias": False},
    "two adapters": {"adapters": 2},
    "three adapters, rsLoRA": {"adapters": 3, "use_rslora": True},
    "patterns": {"rank_pattern": {"a": 2}, "alpha_pattern": {"b": 1}},
    "r 1": {"r": 1},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (1, 12), (2, 3, 4, 12), (0, 12)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case, shape, dtype):
    compare(net(dtype, **CASES[case]), torch.randn(shape, dtype=dtype), dtype)


def test_adapters_in_float32_on_a_half_precision_base():
    model = net(torch.bfloat16, autocast=True)
    x = torch.randn(4, 12, dtype=torch.bfloat16)
    fused, plain = outcome(model, "require", x), outcome(model, "off", x)
    for key, value in fused.items():
        assert value.dtype == plain[key].dtype
        limit = 3e-2 * max(1.0, float(plain[key].detach().abs().max()))
        torch.testing.assert_close(value, plain[key], rtol=0, atol=limit)


@pytest.mark.parametrize("bias", [None, "all"])
def test_a_trained_bias(bias):
    model = net(bias=True)
    if bias:
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad or name.endswith(".bias"))
    compare(model, torch.randn(3, 12), torch.float32)


def test_dropout_draws_the_same_mask():
    model = net(lora_dropout=0.5).train()
    compare(model, torch.randn(4, 12), torch.float32)
    found = [outcome(model, "require", torch.ones(4, 12))["y"] for _ in range(2)]
    assert torch.equal(*found)
    torch.manual_seed(8)
    assert not torch.equal(model(torch.ones(4, 12)), found[0])


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck(dropped, with_bias):
    torch.manual_seed(0)
    shapes = [(3, 5), (3, 5) if dropped else None, (4, 5), (4,) if with_bias else None, (2, 5), (4, 2)]
    tensors = [
        None if s is None else torch.randn(s, dtype=torch.float64, requires_grad=i != 2) for i, s in enumerate(shapes)
    ]
    assert torch.autograd.gradcheck(LoraLinear.apply, (*tensors, 0.7))


def test_only_what_backward_needs_is_kept():
    model = net()
    x = torch.randn(5, 12, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), fast_mode("require"):
        model.base_model.model.a(x)
    frozen = {id(p) for p in model.parameters()} | {id(x)}
    extra = [tuple(t.shape) for t in kept if id(t) not in frozen and t.data_ptr() != x.data_ptr()]
    assert sum(torch.Size(s).numel() for s in extra if s not in [(4, 12), (20, 4), (20, 12)]) <= 5 * 4  # h = x A^T


def test_merged_disabled_and_back():
    model, x = net(), torch.randn(3, 12)
    routes = lambda: {r.route for r in explain(model)}  # noqa: E731
    before = model(x)
    model.merge_adapter()
    assert routes() == {"base"}
    model.unmerge_adapter()
    with model.disable_adapter():
        assert routes() == {"base"}
        torch.manual_seed(0)
        assert torch.equal(model(x), Net()(x))
    assert routes() == {"fast:lora_linear"}
    assert torch.equal(model(x), before)


def test_a_scale_changed_in_use_acts():
    model, x = net(), torch.randn(3, 12)
    for layer in (m for m in model.modules() if isinstance(m, AdapterLayer)):
        layer.scaling["default"] *= 2
    compare(model, x, torch.float32)


# what forbids the fused path, as far as it can be told beforehand: (options, reason)
REASONS = {
    "DoRA": ({"use_dora": True}, "an adapter of Dora"),
    "bias after B": ({"lora_bias": True}, "tensors besides A and B"),
    "several with dropout": ({"lora_dropout": 0.1, "adapters": 2}, "several adapters with dropout"),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons(case):
    options, reason = REASONS[case]
    model = net(**options)
    for route in explain(model):
        assert route.route in ("shortcut", "definition")
        assert reason in route.reason
        assert reason in str(explain(model))
    with (
        fast_mode("require"),
        pytest.raises(trimtab.AdapterError, match=f"no fast path fits 'a' with 'default'.*{reason}"),
    ):
        model(torch.randn(3, 12))
    assert model(torch.randn(3, 12)).isfinite().all()


def test_reasons_by_layer():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    base = nn.ModuleDict({"own": Own(3, 3), "conv": nn.Conv1d(3, 3, 1), "emb": nn.Embedding(3, 3)})
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["own", "conv", "emb"]))
    reasons = {r.path: r.reason for r in explain(model)}
    assert "Own computes in its own way" in reasons["own"]
    assert "a conv layer" in reasons["conv"]
    assert "an embedding layer" in reasons["emb"] or "a embedding layer" in reasons["emb"]


def test_another_method_on_the_layer():
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["a"]), mixed=True)
    model.add_adapter("ia3", trimtab.CONFIGS["IA3"](target_modules=["a"], feedforward_modules=[]))
    model.set_adapter(["default", "ia3"])
    (route,) = explain(model)
    assert route.adapters == ["default", "ia3"]
    assert "an adapter of IA3" in route.reason


def test_switched_off_is_said():
    with fast_mode("off"):
        assert {r.reason for r in explain(net())} == {"switched off"}
    with (
        pytest.raises(trimtab.ConfigError, match="fast mode 'on' is unknown; choose 'auto', 'off' or 'require'"),
        fast_mode("on"),
    ):
        pass


@pytest.mark.parametrize("what", ["hook", "autocast", "trained weight"])
def test_calls_that_it_declines_are_right_all_the_same(what):
    """Such a call takes the reference: hooks run, autocast decides the format, a trained weight has its gradient."""
    model, x = net(), torch.randn(3, 12)
    layer = model.base_model.model.a
    seen = []
    if what == "hook":
        layer.base_layer.register_forward_hook(lambda m, a, y: seen.append(1))
    if what == "trained weight":
        layer.base_layer.weight.requires_grad_()
    fused, plain = {}, {}
    for mode, found in (("auto", fused), ("off", plain)):
        with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
            found.update(outcome(model, mode, x))
    assert fused.keys() == plain.keys()
    assert ("base_model.model.a.base_layer.weight" in fused) == (what == "trained weight")
    assert len(seen) == (2 if what == "hook" else 0)
    for key in fused:
        torch.testing.assert_close(fused[key], plain[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapters", [1, 2])
def test_second_derivatives(adapters):
    model = net(torch.float64, adapters=adapters)
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    moved = [x, *(p for p in model.parameters() if p.requires_grad)]
    found = []
    for mode in ("require", "off"):
        with fast_mode(mode):
            gradients = torch.autograd.grad(model(x).pow(3).sum(), moved, create_graph=True)
            found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), moved))
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)

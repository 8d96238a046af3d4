"""TinyLoRA: which layers share a vector, where it starts, and errors."""

import pytest
import torch
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.layer import AdapterLayer
from trimtab.methods.tinylora import TinyLoraConfig


def adapted(layers=5, **options):
    base = nn.Sequential(*[nn.Linear(6, 6) for _ in range(layers)])
    return get_peft_model(base, TinyLoraConfig(u=3, target_modules=r"\d", **options)).eval()


def groups(model):
    """For each layer, which others change with its vector."""
    layers = [m for m in model.modules() if isinstance(m, AdapterLayer)]
    return [m.adapters["default"].slots["v"].part for m in layers]


@pytest.mark.parametrize(
    ("tying", "expected"),
    [(0.0, "01234"), (0.3, "01233"), (0.5, "00111"), (0.7, "00111"), (0.75, "00000"), (1, "00000")],
)
def test_neighbours_share_a_vector(tying, expected):
    model = adapted(weight_tying=tying)
    assert "".join(groups(model)) == expected
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(set(expected))
    x = torch.randn(2, 6)
    model(x).sum().backward()
    assert all(p.grad.abs().min() > 0 for p in trained.values())


def test_the_directions_are_those_of_the_weight():
    layer = adapted(1, r=6).base_model.model[0]
    a = layer.adapters["default"]
    torch.testing.assert_close(a.B @ a.A, layer.base_layer.weight.detach())


def test_where_the_vector_starts():
    for start, largest in ((True, 0), ("uniform", 0.5), (False, 0.5)):
        v = next(p for p in adapted(init_weights=start, init_v_bound=0.5).parameters() if p.requires_grad)
        assert bool(v.any()) == (start is not True)
        assert v.abs().max() <= largest


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`u`=0 must .*; `weight_tying`=2 must .*; `init_weights`='x' is"):
        TinyLoraConfig(u=0, weight_tying=2, init_weights="x")

"""What orthogonal methods are made of, what they promise, and how they go with others on one layer."""

from itertools import pairwise

import pytest
import torch
from tests import models

import trimtab
from trimtab.methods.rotation import bounded, butterfly, cayley, neumann, reflections, skew, turn, unit

EXACT = {"use_cayley_neumann": False}
ORTHOGONAL = {
    "OFT": ("OFT", {"oft_block_size": 4, **EXACT}),
    "COFT": ("OFT", {"oft_block_size": 4, "coft": True, "eps": 0.5, **EXACT}),
    "BOFT": ("BOFT", {"boft_block_size": 2, "boft_n_butterfly_factor": 2}),
    "HRA": ("HRA", {"r": 3}),
    "HRA, Gram-Schmidt": ("HRA", {"r": 3, "apply_GS": True}),
    "PSOFT": ("PSOFT", {"r": 3, "psoft_mag_a": False, "psoft_mag_b": False}),
}


def adapted(kind: str, *targets: str, **options: object) -> trimtab.PeftModel:
    config = trimtab.CONFIGS[kind](target_modules=list(targets), **options)
    return trimtab.get_peft_model(models.base("zoo"), config).eval()


def test_skew_and_cayley():
    q = skew(torch.tensor([[1.0, 2.0, 3.0]]))
    assert q.tolist() == [[[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]]
    r = cayley(q)
    torch.testing.assert_close(r @ r.mT, torch.eye(3)[None])
    assert skew(torch.zeros(2, 0)).shape == (2, 1, 1)


def test_the_series_goes_to_the_transform():
    q = skew(0.1 * torch.randn(4, 10, dtype=torch.float64))
    errors = [(neumann(q, n) - cayley(q)).abs().max() for n in range(4, 20, 3)]
    assert all(after < before / 2 for before, after in pairwise(errors))
    assert errors[-1] < 1e-5
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(neumann(q, 2), identity + 2 * q)
    torch.testing.assert_close(neumann(q, 5), identity + 2 * (q + q @ q + q @ q @ q) + q @ q @ q @ q)


def test_transforms_are_computed_in_float32_whatever_autocast_says():
    q = skew(0.1 * torch.randn(2, 28))
    expected = cayley(q), neumann(q, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(expected), torch.stack([cayley(q), neumann(q, 6)]))
    assert cayley(q.bfloat16()).dtype == torch.bfloat16


def test_reflections_are_the_product():
    u = torch.randn(7, 4)
    u[:, 2] = 0  # reflects nothing
    expected = torch.eye(7)
    for v in u.T:
        expected = expected @ (torch.eye(7) - (2 * torch.outer(v, v) / (v @ v) if v.any() else 0))
    torch.testing.assert_close(torch.eye(7) - unit(u) @ reflections(unit(u)), expected)


@pytest.mark.parametrize(("level", "first"), [(0, [0, 1, 2, 3]), (1, [0, 1, 4, 5]), (2, [0, 1, 8, 9])])
def test_a_butterfly_block_takes_halves_from_two_places(level, first):
    r = torch.eye(4).repeat(4, 1, 1)
    r[0] = torch.randn(4, 4)
    x = torch.randn(3, 16)
    y = butterfly(x, r, level)
    torch.testing.assert_close(y[:, first], x[:, first] @ r[0])
    others = [i for i in range(16) if i not in first]
    assert torch.equal(y[:, others], x[:, others])


def test_blocks_take_consecutive_features():
    r = torch.randn(3, 2, 2)
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(turn(x, r), x @ torch.block_diag(*r))


def test_a_bound_leaves_zero_alone_and_its_gradient_finite():
    v = torch.zeros(2, 3).requires_grad_()
    bounded(v, 0.1).sum().backward()
    assert torch.equal(v.grad, torch.ones(2, 3))
    q = skew(bounded(torch.randn(4, 6), 0.1))
    torch.testing.assert_close(torch.linalg.matrix_norm(q), torch.full((4,), 0.1))


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_angles_between_the_rows_stay(name):
    kind, options = ORTHOGONAL[name]
    model = models.shake(adapted(kind, "lin0", "c1", **options), only="boft_R" if kind == "BOFT" else "")
    for layer in model.base_model.layers:
        w, changed = layer.site.weight(), layer.effective()[0]
        assert (changed - w).abs().max() > 1e-2
        torch.testing.assert_close(changed @ changed.T, w @ w.T)


def test_road_turns_pairs_of_outputs():
    model = models.shake(adapted("ROAD", "lin0", "c1", group_size=4), only="theta")
    for layer in model.base_model.layers:
        w, changed = layer.site.weight(), layer.effective()[0]
        torch.testing.assert_close(changed.T @ changed, w.T @ w)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("OFT", {"oft_block_size": 4}),
        ("BOFT", {"boft_block_size": 2, "boft_n_butterfly_factor": 2}),
        ("HRA", {"r": 4}),
        ("ROAD", {"group_size": 4}),
        ("PSOFT", {"r": 4}),
    ],
)
def test_beside_lora_on_every_kind_of_layer(kind, options, first):
    targets = ["lin0", "c1", "emb", "conv1", "gconv", "mha"]
    config = trimtab.CONFIGS[kind](target_modules=targets, **options)
    model = trimtab.get_peft_model(models.base("zoo"), config, mixed=True).eval()
    model.add_adapter("lora", trimtab.LoraConfig(r=2, target_modules=targets))
    model.set_requires_grad(["default", "lora"])
    models.shake(model)
    model.set_adapter(["default", "lora"] if first else ["lora", "default"])
    seen = []
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda m, x, k, y: seen.append((m, x, k, y)), with_kwargs=True)
    models.output(model, models.inputs("zoo"))
    assert {m.path for m, *_ in seen} == set(targets)
    for layer, args, kwargs, y in seen:
        expected = layer.site.call(*layer.effective(), *args, **kwargs)
        torch.testing.assert_close(*(t[0] if isinstance(t, tuple) else t for t in (y, expected)), rtol=1e-4, atol=1e-4)

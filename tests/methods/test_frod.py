"""FRoD: the common decomposition, formats, few rows, files, and errors."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.frod import FrodConfig, category


def base(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.ModuleDict({"q": nn.Linear(*s)}) for s in shapes or [(6, 4)] * 3]
    return nn.ModuleDict({"layers": nn.ModuleList(layers)}).to(dtype)


def adapted(*shapes, dtype=torch.float32, **options):
    config = FrodConfig(**{"sparse_rate": 0.3, "target_modules": ["q"]} | options)
    return get_peft_model(base(*shapes, dtype=dtype), config).eval()


def layers(model):
    return [block["q"] for block in model.base_model.model["layers"]]


def test_layers_of_a_category_are_taken_apart_together():
    for options in ({}, {"regularization_alpha": 0.5}):
        found = [m.adapters["default"] for m in layers(adapted(**options))]
        v, squares = found[0].V, sum(a.D.square() for a in found)
        for a in found:
            assert a.V.data_ptr() == v.data_ptr()
            torch.testing.assert_close(a.U * a.D @ v.T, a.site.weight().detach())
            torch.testing.assert_close(a.U.norm(dim=0), torch.ones(6))
        torch.testing.assert_close(squares, torch.ones(6))


def test_categories():
    paths = ("model.layers.0.self_attn.q_proj", "encoder.layer.3.attention.self.query", "blocks.1.q", "lin0")
    assert [category(p) for p in paths] == ["self_attn_q_proj", "self_query", "q", "lin0"]


@pytest.mark.parametrize("dead", [False, True])
def test_directions_that_no_weight_has_are_left_alone(dead):
    """Of few rows, or where an input does not count."""
    start = base((6, 3), (6, 3)) if dead else base((6, 2), (6, 2))
    if dead:
        with torch.no_grad():
            for block in start["layers"]:
                block["q"].weight[:, 2] = 0
    model, x = get_peft_model(start, FrodConfig(target_modules=["q"])), torch.randn(3, 6)
    for layer in layers(model):
        a = layer.adapters["default"]
        assert int((a.D > 0).sum()) == (5 if dead else 4)
        assert not a.U[:, a.D == 0].any()
        assert torch.equal(layer(x), layer.base_layer(x))
    y = layers(models.shake(model))[0](x)
    assert y.isfinite().all()


def test_a_file_brings_its_own_basis(tmp_path):
    model, x = models.shake(adapted()), torch.randn(3, 6)
    y = layers(model)[0](x)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    turned = {k: -t if ".frod_V." in k else t for k, t in tensors.items()}  # as another machine might have it
    save_file(turned, path)
    loaded = trimtab.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(layers(loaded)[0](x), y)
    half = trimtab.PeftModel.from_pretrained(base(dtype=torch.bfloat16), tmp_path)
    torch.testing.assert_close(layers(half)[0](x.bfloat16()).float(), y, rtol=0.1, atol=0.1)


def test_half_precision_starts_without_effect():
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    for autocast in (True, False):
        config = FrodConfig(target_modules=["q"])
        model = get_peft_model(base(dtype=torch.bfloat16), config, autocast_adapter_dtype=autocast)
        layer = layers(model)[0]
        assert layer.adapters["default"].V.dtype == (torch.float32 if autocast else torch.bfloat16)
        assert torch.equal(layer(x), layer.base_layer(x))


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`sparse_rate`=0 must be in \(0, 1\]; `regularization_alpha`=-1"):
        FrodConfig(sparse_rate=0, regularization_alpha=-1)
    with pytest.raises(trimtab.ConfigError, match=r"need inputs of one size, to share a basis: 'q \(6, 8\)'"):
        adapted((6, 4), (8, 4))
    with pytest.raises(trimtab.ConfigError, match="a weight with a single column has nothing to turn"):
        adapted((1, 4))

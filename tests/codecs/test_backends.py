"""Bases that other packages have quantised: what the table of proof cannot see. `hqq` and `torchao` where installed."""

import copy

import pytest
import torch
from tests import models
from tests.storage import STORAGE, store
from torch import nn

import trimtab
from trimtab import LoraConfig, TargetError, get_peft_model
from trimtab.codecs.base import CodecSite
from trimtab.sites import SITES, site_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
X = {"ids": torch.arange(24).view(4, 6)}


def base(name, dtype=torch.float32, device="cpu"):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return store(models.base("wide", dtype=dtype).to(device), name)


def adapted(model, *targets, **options):
    config = LoraConfig(target_modules=list(targets), **options)
    return models.shake(get_peft_model(model, config), size=0.1).eval()


def layers_of(name):
    return [k for k in ("emb", "lin0", "c1", "lin1") if site_of(getattr(base(name), k)).codec]


# every storage, on every device
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STORAGE)
def test_lora_on_a_device(name, dtype, device):
    model = adapted(base(name, dtype, device), *layers_of(name), r=4)
    batch = {"ids": X["ids"].to(device)}
    close = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 or "8-bit" in name else {"rtol": 1e-4, "atol": 1e-4}
    assert {r.route for r in trimtab.explain(model)} == {"shortcut"}
    twin, y = copy.deepcopy(model), models.output(model, batch)
    for layer in model.base_model.layers:
        assert layer.site.device.type == device
        assert layer.site.dtype == (dtype if "8-bit" not in name or layer.site.bias is not None else torch.float32)
    y.float().pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    plain = twin.merge_and_unload(dequantize=True)
    torch.testing.assert_close(models.output(plain, batch), y, **close)
    stored = {layer.path: layer.site.weight().clone() for layer in model.base_model.layers}
    assert model.merge_adapter().largest > 0
    assert not torch.equal(models.output(model, batch), y)
    model.unmerge_adapter()
    assert all(torch.equal(layer.site.weight(), stored[layer.path]) for layer in model.base_model.layers)
    assert torch.equal(models.output(model, batch), y)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["nf4", "int8", "fp8"])
def test_our_own_are_the_same_on_both_devices(name):
    here, there = base(name), base(name, device="cuda")
    moved = base(name).to("cuda")
    for a, b, c in zip(here.parameters(), there.parameters(), moved.parameters(), strict=True):
        assert torch.equal(a, c.cpu())
        assert a.dtype == b.dtype
    for layer in ("emb", "lin0", "c1", "lin1"):
        one, other = getattr(here, layer), getattr(there, layer)
        assert (one.codes.view(torch.uint8) == other.codes.cpu().view(torch.uint8)).float().mean() > 0.999
        torch.testing.assert_close(other.weight.cpu(), one.weight, rtol=0, atol=0.1)


# bitsandbytes
def embedding(bits):
    bnb = pytest.importorskip("bitsandbytes.nn")
    model = models.base("wide")
    made = (bnb.EmbeddingNF4 if bits == 4 else bnb.Embedding8bit)(30, 64)
    made.weight.data = model.emb.weight.data
    model.emb = made.to("cpu")
    return model.eval()


@pytest.mark.parametrize("bits", [4, 8])
def test_embeddings_of_bitsandbytes(bits):
    dense = models.base("wide").emb.weight.detach()
    model = adapted(embedding(bits), "emb", r=4)
    layer = model.base_model.model.emb
    assert layer.site.shape == (64, 30)
    assert (layer.site.weight().T - dense).abs().max() < (0.1 if bits == 4 else 0.01)
    y, w = models.output(model, X), layer.site.weight().clone()
    torch.testing.assert_close(layer(X["ids"]), layer.site.op(X["ids"], layer.effective()[0]))
    plain = copy.deepcopy(model).merge_and_unload(dequantize=True)
    assert type(plain.emb) is nn.Embedding
    torch.testing.assert_close(models.output(plain, X), y, rtol=1e-5, atol=1e-5)
    model.merge_adapter()
    assert not torch.equal(layer.site.weight(), w)
    model.unmerge_adapter()
    assert torch.equal(models.output(model, X), y)


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_adapters_before_the_layer_is_quantised(kind):
    bnb = pytest.importorskip("bitsandbytes.nn")
    model = models.base("wide")
    made = getattr(bnb, kind)(64, 128, **({"has_fp16_weights": False} if kind == "Linear8bitLt" else {}))
    made.weight.data, made.bias = model.lin0.weight.data, model.lin0.bias
    model.lin0 = made
    adapter = adapted(model, "lin0", r=4)
    layer = adapter.base_model.model.lin0
    dense = layer.effective()[0].clone()
    adapter.merge_adapter()
    torch.testing.assert_close(layer.site.weight(), dense)
    adapter.unmerge_adapter()
    adapter.to("cpu")  # this is when bitsandbytes quantises
    assert layer.base_layer.weight.dtype != torch.float32
    torch.testing.assert_close(layer.effective()[0], dense, rtol=0, atol=0.1)


def test_a_packed_parameter_is_no_target_of_its_own():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(TargetError, match=r"parameter 'weight' is quantised; name its layer in `target_modules`"):
        get_peft_model(base("bitsandbytes 4-bit"), LoraConfig(target_parameters=["lin0.weight"]))


# torchao
def torchao_base(config, name="lin0"):
    ao = pytest.importorskip("torchao.quantization")
    model = models.base("wide")
    ao.quantize_(model, getattr(ao, config)(), lambda module, path: path == name)
    return model


def test_quantised_activations_are_warned_of():
    model = torchao_base("Int8DynamicActivationInt8WeightConfig")
    with pytest.warns(trimtab.TrimtabWarning, match="Int8Tensor quantises activations too, and may pass no gradient"):
        get_peft_model(model, LoraConfig(target_modules=["lin0"]))


def test_a_weight_of_torchao_elsewhere_than_in_a_linear_layer():
    model = torchao_base("Int8WeightOnlyConfig")
    model.emb.weight = model.lin0.weight
    with pytest.raises(TargetError, match="a weight of torchao's in a Embedding carries no adapter"):
        get_peft_model(model, LoraConfig(target_modules=["emb"]))


# storage that cannot be written
class Sealed(nn.Linear):
    """A layer whose storage is read-only."""


class SealedSite(CodecSite):
    layers = (f"{Sealed.__module__}.Sealed",)
    codec, refusal = "sealed", "it needs data for that"
    dtype = torch.float32

    def weight(self):
        return self.layer.weight.detach()


def test_storage_that_cannot_be_written():
    assert SITES[f"{Sealed.__module__}.Sealed"] is SealedSite
    model = models.base("wide")
    model.lin0 = Sealed(64, 128)
    with pytest.raises(trimtab.ConfigError, match="W cannot be stored as sealed, because it needs data for that"):
        adapted(model, "lin0", init_lora_weights="pissa")
    model = adapted(model, "lin0", "lin1", r=4)
    y = models.output(model, X)
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(trimtab.MergeError, match=r"lin0: no weight can be stored as sealed, because it needs data"):
            act()
    assert torch.equal(models.output(model, X), y)
    plain = model.merge_and_unload(dequantize=True)
    assert type(plain.lin0) is nn.Linear
    torch.testing.assert_close(models.output(plain, X), y, rtol=1e-5, atol=1e-5)

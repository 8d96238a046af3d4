"""Our own codecs: what they store, how their layers compute, and what `quantize_` replaces and refuses."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models
from tests.storage import LAYERS
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import trimtab
from trimtab import LoraConfig, PeftModel, TargetError, get_peft_model
from trimtab.codecs import FP8, NF4, Int8, quantize_
from trimtab.codecs.layers import Quantized, QuantizedEmbedding, QuantizedLinear

CODECS = {"nf4": NF4(), "nf4 plain": NF4(double_quant=False), "int8": Int8(), "fp8": FP8()}
every = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
X = {"ids": torch.arange(24).view(4, 6)}


def stored(codec=None, dtype=torch.float32):
    return quantize_(models.base("wide", dtype=dtype), codec or NF4(), LAYERS)


# what is stored
ERROR = {"nf4": 0.0924, "nf4 plain": 0.0923, "int8": 0.0079, "fp8": 0.0265}
BITS = {"nf4": 4.127, "nf4 plain": 4.5, "int8": 8.03, "fp8": 8.03}


@pytest.mark.parametrize("name", CODECS)
def test_error_and_size_on_normal_weights(name):
    w, codec = torch.randn(1024, 1024), CODECS[name]
    held = codec.encode(w)
    error = float((codec.decode(held, 1024) - w).norm() / w.norm())
    assert error == pytest.approx(ERROR[name], rel=0.02)
    size = sum(t.numel() * t.element_size() for t in held.values())
    assert 8 * size / w.numel() == pytest.approx(BITS[name], abs=0.02)


@every
def test_odd_shapes_and_rows_of_zeros(codec):
    w = torch.randn(5, 71)
    w[2] = 0
    decoded = codec.decode(codec.encode(w), 71)
    assert decoded.shape == w.shape
    assert (decoded - w).abs().max() < 0.5
    assert decoded[2].abs().max() < 1e-6
    picked = codec.decode(codec.rows(codec.encode(w), torch.tensor([4, 0, 4])), 71)
    torch.testing.assert_close(picked, decoded[[4, 0, 4]])


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    w = torch.randn(64, 256)
    for double in (False, True):
        codes, state = functional.quantize_4bit(w, quant_type="nf4", compress_statistics=double)
        ours = NF4(double_quant=double)
        held = ours.encode(w)
        assert torch.equal(held["codes"].flatten(), codes.flatten())
        theirs = functional.dequantize_4bit(codes, state)
        close = {"rtol": 0, "atol": 0.02} if double else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours.decode(held, 256), theirs, **close)
        assert (ours.decode(held, 256) - w).norm() <= 1.0001 * (theirs - w).norm()


def test_a_block_is_whole_bytes():
    with pytest.raises(trimtab.ConfigError, match="`blocksize`=63 must be even: two weights share a byte"):
        NF4(blocksize=63)


# the layers
@every
def test_a_layer_computes_with_the_weight_it_shows(codec):
    model, dense = stored(codec), models.base("wide")
    for name in ("lin0", "c1", "lin1"):
        layer = getattr(model, name)
        assert isinstance(layer, QuantizedLinear)
        x = torch.randn(3, 2, layer.weight.shape[1], requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias))
        g = torch.randn_like(y)
        y.backward(g)
        torch.testing.assert_close(x.grad, g @ layer.weight)
    assert isinstance(model.emb, QuantizedEmbedding)
    torch.testing.assert_close(model.emb(X["ids"]), nn.functional.embedding(X["ids"], model.emb.weight.T))
    assert (models.output(model, X) - models.output(dense, X)).abs().max() < 0.2
    assert torch.equal(model.c1.plain(model.c1.weight).weight, model.c1.weight.T)
    assert not any(p is not None for p in model.c1.origin.layer._parameters.values())
    assert not any(p.requires_grad for p in model.lin0.parameters())


@every
def test_the_decoded_weight_is_not_kept_for_the_backward(codec):
    layer, kept = stored(codec).lin0, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    held = {t.data_ptr() for t in layer.stored.values()}
    assert all(t.data_ptr() in held for t in kept)


@every
def test_number_formats(codec):
    model = stored(codec, torch.bfloat16)
    held = {k: t.clone() for k, t in model.lin0.stored.items()}
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        model.to(dtype)
        assert model.lin0.dtype == model.lin0.weight.dtype == model.emb(X["ids"]).dtype == dtype
        assert all(torch.equal(t, held[k]) and t.dtype == held[k].dtype for k, t in model.lin0.stored.items())
    x = torch.randn(2, 64)
    assert model.lin0(x).dtype == torch.float32  # as it was given, computed in bfloat16
    torch.testing.assert_close(model.lin0(x), model.lin0(x.bfloat16()).float())
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.lin0(x).dtype == torch.bfloat16
    half = quantize_(models.base("wide"), type(codec)(dtype=torch.bfloat16), LAYERS)
    assert half.lin0.weight.dtype == torch.bfloat16


@every
def test_copies_and_files(codec, tmp_path):
    model = stored(codec)
    y = models.output(model, X)
    assert torch.equal(models.output(copy.deepcopy(model), X), y)
    save_file({k: t.contiguous() for k, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    other = quantize_(models.base("wide", seed=1), codec, LAYERS)
    assert not torch.equal(models.output(other, X), y)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(models.output(other, X), y)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(models.output(torch.load(tmp_path / "model.pt", weights_only=False), X), y)


# quantize_
def test_all_linear_layers_but_the_heads_by_default():
    for name in ("llama", "gpt2", "bert", "t5"):
        model = quantize_(models.base(name))
        done = {path.rpartition(".")[2] for path, m in model.named_modules() if isinstance(m, Quantized)}
        assert done
        assert not done & {"lm_head", "classifier", "embed_tokens"}
        left = {path for path, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
        assert left <= {"lm_head", "classifier"}
        assert models.output(model, models.inputs(name)).isfinite().all()


def test_layers_by_name_and_what_they_know():
    model = quantize_(models.base("llama"), Int8(), r".*layers\.1.*(q|v)_proj")
    done = [path for path, m in model.named_modules() if isinstance(m, Quantized)]
    assert done == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    layer = model.model.layers[1].self_attn.q_proj
    assert (layer.in_features, layer.out_features) == (16, 16)
    assert "out=16, in=16, bias=False, Int8(" in repr(layer)
    with pytest.raises(AttributeError, match="nothing"):
        layer.nothing  # noqa: B018


def test_an_embedding_that_scales_inside():
    options = {k: v for k, v in models._GEMMA.items() if k != "num_hidden_layers"}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**options, num_hidden_layers=1, tie_word_embeddings=False)).eval()
    ids = torch.arange(5).view(1, 5)
    plain = model.model.embed_tokens(ids)
    quantize_(model, Int8(), ["embed_tokens"])
    torch.testing.assert_close(model.model.embed_tokens(ids), plain, rtol=0, atol=0.05)
    assert type(model.model.embed_tokens.plain(model.model.embed_tokens.weight)).__name__.startswith("Gemma3")


def test_a_layer_at_two_places_stays_one():
    model = models.base("wide")
    model.again = model.lin1
    quantize_(model, NF4(), ["lin1", "again"])
    assert model.again is model.lin1


def nan(model):
    model.lin0.weight.data[0, 0] = float("nan")


def tie(model):
    model.other = nn.Linear(64, 30)
    model.other.weight = model.emb.weight


REFUSED = {
    "unknown name": (lambda m: None, "lin9", r"no module is called 'lin9'\. Nearest: 'lin0', 'lin1'"),
    "kind": (lambda m: None, ["again"], "again is a Conv2d, neither a linear layer nor an embedding"),
    "twice": (lambda m: quantize_(m, NF4(), ["lin0"]), ["lin1", "lin0"], "1 of 2 layers .*: lin0 is quantised already"),
    "NaN": (nan, ["lin1", "lin0"], "lin0 holds NaN or infinity"),
    "meta": (lambda m: m.to("meta"), ["lin0"], "lin0 has no values yet"),
    "shared": (tie, ["emb"], "emb shares its weight with 'other', which needs it as it is"),
    "adapters": (lambda m: get_peft_model(m, LoraConfig(target_modules=["lin0"])), ["lin1"], "has adapters already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_quantised_is_said_and_nothing_is_changed(name):
    act, modules, message = REFUSED[name]
    model = models.base("wide")
    model.again = nn.Conv2d(1, 1, 1)
    act(model)
    before = {k: type(m) for k, m in model.named_modules()}
    with pytest.raises(TargetError, match=message):
        quantize_(model, NF4(), modules)
    assert {k: type(m) for k, m in model.named_modules()} == before


@pytest.mark.parametrize("codec", ["nf4", NF4, 4])
def test_what_is_no_codec_is_said(codec):
    with pytest.raises(trimtab.ConfigError, match=r"is no codec; pass NF4\(\), Int8\(\) or FP8\(\)"):
        quantize_(models.base("wide"), codec)


# under adapters
def adapted(**options):
    return models.shake(get_peft_model(stored(), LoraConfig(target_modules=LAYERS, **options)))


def test_lora_never_builds_the_weight(monkeypatch):
    model = adapted(lora_dropout=0.1)
    assert {r.route for r in trimtab.explain(model)} == {"shortcut"}
    assert {r.reason for r in trimtab.explain(model)} == {"lora_linear: a weight stored as nf4"}
    monkeypatch.setattr("trimtab.layer.AdapterLayer._composed", lambda *args: pytest.fail("by the definition"))
    monkeypatch.setattr("trimtab.codecs.layers.Quantized.weight", property(lambda s: pytest.fail("for nothing")))
    models.output(model, X).sum().backward()


def test_parameters_count_as_what_they_stand_for():
    dense = get_peft_model(models.base("wide"), LoraConfig(target_modules=LAYERS))
    assert adapted().get_nb_trainable_parameters() == dense.get_nb_trainable_parameters()
    status = adapted().get_model_status()
    assert status.total_params == dense.get_model_status().total_params
    assert status.quantization_backend == "nf4"


@pytest.mark.parametrize(("first", "second"), [("dense", "nf4"), ("nf4", "dense"), ("nf4", "nf4")])
def test_an_adapter_fits_the_same_base_stored_otherwise(first, second, tmp_path):
    make = {"dense": lambda: models.base("wide"), "nf4": stored}
    models.shake(get_peft_model(make[first](), LoraConfig(target_modules=LAYERS))).save_pretrained(tmp_path)
    PeftModel.from_pretrained(make[second](), tmp_path)
    other = make[second]()
    other.lin0 = quantize_(nn.Sequential(nn.Linear(64, 130)), NF4(), ["0"])[0]
    with pytest.raises(trimtab.AdapterFileError, match=r"lin0.*130"):
        PeftModel.from_pretrained(other, tmp_path)


def test_what_a_quantised_layer_refuses():
    with pytest.raises(TargetError, match="'lin0' cannot be trained in full"):
        get_peft_model(stored(), LoraConfig(target_modules=["lin1"], modules_to_save=["lin0"]))
    with pytest.raises(TargetError, match=r"no parameter is called 'lin0\.weight'"):
        get_peft_model(stored(), LoraConfig(target_parameters=["lin0.weight"]))


def test_pissa_quantises_the_rest():
    dense = models.base("wide").lin0.weight.detach()
    model = get_peft_model(stored(Int8()), LoraConfig(r=16, target_modules=["lin0"], init_lora_weights="pissa"))
    layer = model.base_model.model.lin0
    assert (layer.effective()[0] - dense).abs().max() < 0.02
    assert (layer.site.weight() - dense).abs().max() > 0.1


# merging
def test_a_dequantised_merge_takes_a_number_format_and_what_was_merged_before():
    model = adapted()
    y = models.output(model, X)
    assert "merge_and_unload(dequantize=True)" in str(model.merge_adapter())
    plain = copy.deepcopy(model).merge_and_unload(dequantize=True)
    torch.testing.assert_close(models.output(plain, X), y, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, Quantized) for m in plain.modules())
    half = model.merge_and_unload(dequantize=torch.bfloat16)
    assert {p.dtype for n, p in half.named_parameters() if "head" not in n} == {torch.bfloat16}


def test_a_base_that_is_kept_elsewhere():
    """Accelerate brings the stored tensors in for a forward; what they stand for is read, and written, there."""
    accelerate = pytest.importorskip("accelerate")
    here, base = adapted(), stored()
    accelerate.cpu_offload(base, torch.device("cpu"))
    assert base.lin0.codes.is_meta
    model = models.shake(get_peft_model(base, LoraConfig(target_modules=LAYERS)))
    y = models.output(here, X)
    torch.testing.assert_close(models.output(model, X), y)
    before = {k: t.clone() for k, t in base.lin0.base_layer.stored.items()}
    for each in (here, model):
        each.merge_adapter()
    torch.testing.assert_close(models.output(model, X), models.output(here, X))
    model.unmerge_adapter()
    assert all(torch.equal(t, before[k]) for k, t in base.lin0.base_layer.stored.items())

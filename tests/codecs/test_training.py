"""Training on a quantised base: what `prepare_model_for_kbit_training` does, recomputing activations, optimisers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import models
from torch import nn

from trimtab import ConfigError, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from trimtab.codecs import FP8, NF4, Int8, quantize_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = models.inputs("llama")
CODECS = {"nf4": NF4(), "int8": Int8(), "fp8": FP8()}


def model_of(codec, **options):
    """A model as users make it: half precision, quantised, prepared, adapted."""
    base = quantize_(models.base("llama", dtype=torch.bfloat16), codec)
    prepared = prepare_model_for_kbit_training(base, **options)
    assert prepared is base
    return models.shake(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))).train()


def gradients(model):
    model.zero_grad()
    model(**{k: t.to(model.device) for k, t in BATCH.items()}).loss.backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_only_adapters_train_and_the_rest_becomes_float32(codec):
    before = quantize_(models.base("llama", dtype=torch.bfloat16), codec).state_dict()
    base = prepare_model_for_kbit_training(quantize_(models.base("llama", dtype=torch.bfloat16), codec))
    assert not any(p.requires_grad for p in base.parameters())
    for key, t in base.state_dict().items():
        assert torch.equal(t, before[key])
        assert t.dtype in (before[key].dtype, torch.float32)
    assert base.model.norm.weight.dtype == base.lm_head.weight.dtype == torch.float32
    assert base.model.layers[0].mlp.up_proj.dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_recomputing_gives_the_same_gradients_down_to_the_first_layer(reentrant):
    plain = gradients(model_of(NF4(), use_gradient_checkpointing=False))
    options = {} if reentrant is None else {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model = model_of(NF4(), **options)
    assert model.base_model.model.model.gradient_checkpointing
    found = gradients(model)
    assert any("layers.0.self_attn.q_proj.lora_A" in key for key in found)
    assert found.keys() == plain.keys() == {k for k, p in model.named_parameters() if p.requires_grad}
    for key, g in found.items():
        torch.testing.assert_close(g, plain[key], rtol=1e-2, atol=1e-2 * float(plain[key].abs().max()))


def test_a_model_that_cannot_recompute_is_refused_before_anything_is_changed():
    base = quantize_(models.base("wide", dtype=torch.bfloat16), NF4(), ["lin0"])
    with pytest.raises(ConfigError, match="Wide has no `gradient_checkpointing_enable`; pass"):
        prepare_model_for_kbit_training(base)
    assert base.head.weight.requires_grad
    assert base.head.weight.dtype == torch.bfloat16
    prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    assert base.head.weight.dtype == torch.float32


def test_a_plain_model_does_not_recompute():
    assert not prepare_model_for_kbit_training(models.base("llama")).is_gradient_checkpointing


def test_a_model_that_transformers_has_quantised(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    models.base("llama").save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    prepare_model_for_kbit_training(base)
    packed = base.model.layers[0].mlp.up_proj.weight
    assert packed.dtype == torch.uint8
    assert base.model.norm.weight.dtype == torch.float32
    model = models.shake(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))).train()
    assert {r.codec for r in model.merge_adapter().layers} == {"bitsandbytes 4-bit"}
    model.unmerge_adapter()
    assert base.model.layers[0].mlp.up_proj.base_layer.weight is packed
    assert gradients(model).keys() == {k for k, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW"])
def test_optimisers_of_bitsandbytes(name):
    optimisers = pytest.importorskip("bitsandbytes.optim")
    model = model_of(NF4()).to(DEVICE)
    batch = {k: t.to(DEVICE) for k, t in BATCH.items()}
    optimiser = getattr(optimisers, name)((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_an_optimiser_step_moves_adapters_only():
    model = model_of(NF4())
    before = {k: t.clone() for k, t in model.state_dict().items()}
    gradients(model)
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    moved = {k for k, t in model.state_dict().items() if not torch.equal(t, before[k])}
    assert moved == {k for k, p in model.named_parameters() if p.requires_grad}
    assert not any(isinstance(m, nn.Linear) and "lora" not in n for n, m in model.named_modules() if "layers" in n)


def test_the_guide_runs(tmp_path):
    pytest.importorskip("bitsandbytes")
    text = (Path(__file__).parents[2] / "docs/quantised.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged, plain = done.stdout.splitlines()
    assert re.match(r"merged 14 layers; weight error: largest .*; 14 of them were quantised again \(nf4\), ", merged)
    assert re.match(r"merged 14 layers; weight error: largest [^;]*$", plain)

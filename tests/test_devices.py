"""Models whose layers are on several devices, or are kept in memory or on disk and brought in for a forward."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tests import models

import trimtab
from trimtab import CONFIGS, get_peft_model

BATCH = models.inputs("llama", 2)
TARGETS = {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}
METHODS = {
    "LoRA": ("LORA", {"r": 2}),
    "DoRA": ("LORA", {"r": 2, "use_dora": True}),
    "LoHa, by definition": ("LOHA", {"r": 2}),
    "VeRA, shared": ("VERA", {"r": 2, "target_modules": ["q_proj", "down_proj"]}),
}


def adapted(base, method):
    kind, options = METHODS[method]
    config = CONFIGS[kind](**TARGETS | options, task_type="CAUSAL_LM")
    return models.shake(get_peft_model(base, config)).eval()


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_an_offloaded_base_gives_the_same(method, kept, tmp_path):
    expected = adapted(models.base("llama"), method)(**BATCH).logits
    base, device = models.base("llama"), torch.device("cpu")
    cpu_offload(base, device) if kept == "memory" else disk_offload(base, tmp_path / "base", device)
    model = adapted(base, method)
    own = {k for k, p in model.named_parameters() if p.requires_grad}
    assert not any(dict(model.named_parameters())[k].is_meta for k in own)
    assert all(p.is_meta for k, p in model.named_parameters() if k not in own)
    assert torch.equal(model(**BATCH).logits, expected)
    model.merge_adapter()
    torch.testing.assert_close(model(**BATCH).logits, expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(model(**BATCH).logits, expected)
    model.save_pretrained(tmp_path / "adapter")
    again = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path / "adapter")
    assert torch.equal(again(**BATCH).logits, expected)
    plain = model.merge_and_unload()
    torch.testing.assert_close(plain(**BATCH).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_offloaded_base_trains_its_adapter():
    base = models.base("llama")
    cpu_offload(base, torch.device("cpu"))
    model = adapted(base, "LoRA").train()
    model(**BATCH).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_layers_on_two_devices(method, tmp_path):
    expected = adapted(models.base("llama"), method)(**BATCH).logits
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu", "model.norm": 0, "lm_head": 0}
    base = dispatch_model(models.base("llama"), places | {"model.rotary_emb": 0}, main_device=0)
    model = adapted(base, method)
    batch = {k: v.to(0) for k, v in BATCH.items()}
    output = model(**batch)
    torch.testing.assert_close(output.logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path)
    torch.testing.assert_close(again(**BATCH).logits, expected, rtol=1e-5, atol=1e-5)

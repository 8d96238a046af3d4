"""Modules as a whole: how wide they are, how they are called, what stands inside them, and what cannot be."""

import pytest
import torch
from safetensors.torch import load_file
from tests import models
from torch import nn

import trimtab
from trimtab import LoraConfig, PeftModel, get_peft_model
from trimtab.blocks import BlockSite, repeated
from trimtab.methods.bottleneck import BottleneckConfig

WIDTHS = {  # module -> what goes in, what comes out
    "llama": {"model.layers.0": (16, 16), "model.layers.0.mlp": (16, 16), "model.layers.0.self_attn": (16, 16)},
    "qwen3": {"model.layers.0": (16, 16), "model.layers.0.mlp": (16, 16), "model.layers.0.self_attn": (16, 16)},
    "gemma2": {"model.layers.1": (16, 16), "model.layers.1.mlp": (16, 16)},
    "gpt2": {"transformer.h.0": (16, 16), "transformer.h.0.mlp": (16, 16), "transformer.h.1.attn": (16, 16)},
    "bert": {"bert.encoder.layer.0": (16, 16), "bert.encoder.layer.0.output": (24, 16)},
    "t5": {"encoder.block.0": (16, 16), "decoder.block.1.layer.2.DenseReluDense": (16, 16)},
    "bart": {"model.encoder.layers.0": (16, 16), "model.decoder.layers.1.encoder_attn": (16, 16)},
}
BLOCKS = {
    "llama": ["model.layers.0", "model.layers.1"],
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "zoo": [],
}


def adapted(name, targets, seed=5, **options):
    config = BottleneckConfig(target_modules=targets, reduction_factor=4, **options)
    return models.shake(get_peft_model(models.base(name), config), seed).eval()


@pytest.mark.parametrize("name", WIDTHS)
def test_widths(name):
    model = models.base(name)
    found = {path: BlockSite(model.get_submodule(path), model.config.hidden_size) for path in WIDTHS[name]}
    assert {path: (site.inp, site.out) for path, site in found.items()} == WIDTHS[name]
    batch, seen = models.inputs(name), {}
    for path in WIDTHS[name]:
        model.get_submodule(path).register_forward_hook(lambda m, i, y, path=path: seen.update({path: y}))
    model(**batch)
    for path, (_, out) in WIDTHS[name].items():
        y = seen[path][0] if isinstance(seen[path], tuple) else seen[path]
        assert y.shape[-1] == out


@pytest.mark.parametrize("name", BLOCKS)
def test_repeated_blocks(name):
    assert repeated(models.base(name)) == BLOCKS[name]


@torch.no_grad()
def test_a_module_that_is_called_by_keywords_and_returns_more():
    """The attention of Llama is called by names alone; what it returns beside its output is not touched."""
    model, batch = adapted("llama", ["self_attn"], non_linearity="tanh"), models.inputs("llama")
    (layer, _), kept = model.base_model.layers, []
    layer.base_layer.register_forward_hook(lambda m, i, y: kept.append(y))
    layer.register_forward_hook(lambda m, i, y: kept.append(y))
    model(**batch)
    (before, *rest), (after, *others) = kept
    a = layer.adapters["default"]
    expected = before + torch.tanh(before @ a.D.T + a.d) @ a.U.T + a.u
    torch.testing.assert_close(after, expected)
    assert all(x is y for x, y in zip(rest, others, strict=True))


@torch.no_grad()
def test_what_stands_inside_keeps_its_keys(tmp_path):
    """Adapters of layers inside are saved as if there were none around them, and load without it."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    batch = models.inputs("llama")
    alone = models.shake(get_peft_model(models.base("llama"), lora)).eval()
    alone.save_pretrained(tmp_path / "alone")
    for first in ("inside", "around"):
        model = get_peft_model(models.base("llama"), BottleneckConfig(target_modules=["mlp"]), "around", mixed=True)
        if first == "inside":
            model = get_peft_model(models.base("llama"), lora, "lora", mixed=True)
            model.add_adapter("around", BottleneckConfig(target_modules=["mlp", "layers.1"], init_weights=False))
            trimtab.set_peft_model_state_dict(model, load_file(tmp_path / "alone/adapter_model.safetensors"), "lora")
        else:
            model.load_adapter(tmp_path / "alone", "lora")
        model.set_adapter("lora")
        torch.testing.assert_close(model.eval()(**batch).logits, alone(**batch).logits)
        model.save_pretrained(tmp_path / first)
        assert (
            load_file(tmp_path / first / "lora/adapter_model.safetensors").keys()
            == load_file(tmp_path / "alone/adapter_model.safetensors").keys()
        )
        y = PeftModel.from_pretrained(models.base("llama"), tmp_path / first / "around")(**batch).logits
        model.set_adapter("around")
        torch.testing.assert_close(model(**batch).logits, y)


def test_what_cannot_be():
    model = adapted("llama", ["mlp"])
    with pytest.raises(trimtab.MergeError, match="depends on what goes through the layer, which no weight can hold"):
        model.merge_adapter()
    with pytest.raises(trimtab.TargetError, match="nothing in this Identity tells how many features it returns"):
        get_peft_model(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), BottleneckConfig(target_modules=["0"]))
    with pytest.raises(trimtab.TargetError, match="a LlamaMLP carries no adapter"):
        get_peft_model(models.base("llama"), LoraConfig(target_modules=["mlp"]))
    mixed = get_peft_model(models.base("zoo"), BottleneckConfig(target_modules=["mha"]), mixed=True)
    with pytest.raises(trimtab.TargetError, match="mha: has an adapter of the module as a whole already"):
        mixed.add_adapter("lora", LoraConfig(target_modules=["mha"]))
    wide = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Flatten()))
    model = get_peft_model(wide, BottleneckConfig(target_modules=["0"]))
    with pytest.raises(trimtab.AdapterError, match="'0' returns 8 features, where 4 were expected"):
        model(torch.randn(3, 2, 4))

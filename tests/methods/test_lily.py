"""Lily: which layers share what, also after loading and copying, and errors."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests import models
from torch import nn

import trimtab
from trimtab import get_peft_model
from trimtab.methods.lily import LilyConfig


class Blocks(nn.Module):
    """Blocks of two layers, attention's and the other's, whose shapes differ every third time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        shapes = [(6, 4) if i % 3 == 2 else (6, 6) for i in range(7)]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"own": nn.ModuleDict({"q": nn.Linear(*s)}), "cross": nn.ModuleDict({"q": nn.Linear(*s)})})
            for s in shapes
        )

    def forward(self, x):
        return torch.cat([m(x) for block in self.blocks for m in (block["own"]["q"], block["cross"]["q"])], dim=-1)


def adapted(library=trimtab, **options):
    config = (LilyConfig if library is trimtab else peft.LilyConfig)(
        **{"r": 2, "stride_A": 2, "target_modules": ["q"]} | options
    )
    return models.shake(library.get_peft_model(Blocks(), config)).eval()


def sharing(model):
    """Of every tensor, by name, the first name that means the same one."""
    first, found = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if "lily" in name:
            found[name] = first.setdefault(id(p), name)
    return found


@pytest.mark.parametrize("options", [{}, {"stride_A": 1}, {"stride_A": 3}, {"target_modules": ["own.q", "cross.q"]}])
def test_layers_share_what_they_share_in_peft(options):
    ours = sharing(adapted(**options))
    assert ours == sharing(adapted(peft, **options))
    assert len(set(ours.values())) < len(ours) < 3 * 14 + 1


def test_what_is_shared_stays_shared(tmp_path):
    model, x = adapted(), torch.randn(5, 6)
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 3 * 14  # as PEFT writes them, with every layer
    loaded = trimtab.PeftModel.from_pretrained(Blocks(), tmp_path, is_trainable=True)
    empty = get_peft_model(Blocks(), LilyConfig(r=2, stride_A=2, target_modules=["q"]), low_cpu_mem_usage=True)
    trimtab.set_peft_model_state_dict(empty, trimtab.get_peft_model_state_dict(model))
    for other in (copy.deepcopy(model), loaded, empty, loaded.to(torch.float64)):
        assert sharing(other) == sharing(model)
    model(x).sum().backward()
    shared = next(p for n, p in model.named_parameters() if "lily_B" in n)
    assert shared.grad.abs().sum() > 0


def test_all_linear_layers_share_by_name():
    model = get_peft_model(models.base("llama"), LilyConfig(r=2, target_modules="all-linear"))
    together = sharing(model)
    second = {n: first for n, first in together.items() if "layers.1" in n and "lily_B" in n}
    assert second
    assert all(first == n.replace("layers.1", "layers.0") for n, first in second.items())


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`stride_A`=0 must .*; `num_B`=1 must be at least 2: with one, the"):
        LilyConfig(stride_A=0, num_B=1)
    with pytest.raises(trimtab.MergeError, match="depends on the input, which no weight can hold"):
        adapted().merge_adapter()
    with pytest.raises(trimtab.TargetError, match="attention layer cannot show the input to an adapter"):
        get_peft_model(models.base("zoo"), LilyConfig(target_modules=["mha"]))

"""FourierFT, WaveFT, C3A, SHiRA, Super-tuning and MiSS: what the table cannot see."""

import copy
import math
import sys

import peft
import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab.methods import waveft
from trimtab.methods.c3a import C3AConfig
from trimtab.methods.fourierft import FourierFTConfig
from trimtab.methods.miss import MissConfig
from trimtab.methods.shira import ShiraConfig
from trimtab.methods.supertuning import SupertuningConfig
from trimtab.methods.waveft import WaveFTConfig

TARGET = {"target_modules": ["0"]}


def layer(config, inp=6, out=8):
    torch.manual_seed(0)
    model = trimtab.get_peft_model(nn.Sequential(nn.Linear(inp, out)), config)
    return models.shake(model).base_model.model[0]


def db2():
    """The filters of the Daubechies wavelet with two vanishing moments, from their closed form."""
    root = math.sqrt(3)
    low = torch.tensor([1 + root, 3 + root, 3 - root, 1 - root], dtype=torch.float64) / (4 * math.sqrt(2))
    return torch.stack([low, low.flip(0) * torch.tensor([1, -1, 1, -1])])


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (9, 12)])
def test_longer_wavelets_are_those_of_peft(shape, monkeypatch):
    """Also for sizes that no power of two divides."""
    monkeypatch.setattr(waveft, "filters", lambda family: db2())
    options = {"n_frequency": 20, "wavelet_family": "db2", **TARGET}
    ours = layer(WaveFTConfig(**options), *shape[::-1])
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(*shape[::-1])), peft.WaveFTConfig(**options)).base_model.model[
        0
    ]
    with torch.no_grad():
        theirs.waveft_spectrum["default"].copy_(ours.waveft_spectrum["default"])
    torch.testing.assert_close(
        ours.get_delta_weight("default"), theirs.get_delta_weight("default"), rtol=1e-4, atol=1e-5
    )


def test_other_wavelets_need_a_package(monkeypatch):
    waveft.filters.cache_clear()
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(trimtab.ConfigError, match="`wavelet_family`='sym4' needs the package PyWavelets"):
        WaveFTConfig(wavelet_family="sym4")


@pytest.mark.parametrize("config", [FourierFTConfig, WaveFTConfig])
def test_each_coefficient_has_a_place_of_its_own(config):
    held = layer(config(n_frequency=48, **TARGET)).adapters["default"]
    assert sorted(held.where.tolist()) == list(range(48))


@pytest.mark.parametrize(
    ("n", "shapes"),
    [(10, [(6, 8), (8, 20)]), (7, [(3, 5), (7, 5), (11, 2)]), (4, [(3, 5), (7, 5), (11, 2)]), (1, [(1, 1), (20, 20)])],
)
def test_coefficients_in_proportion_to_the_layers_as_peft_rounds_them(n, shapes):
    targets = [str(i) for i in range(len(shapes))]
    options = {"n_frequency": n, "proportional_parameters": True, "target_modules": targets}
    ours, theirs = (
        [
            p.shape
            for p in lib.get_peft_model(
                nn.Sequential(*(nn.Linear(*s) for s in shapes)), lib.WaveFTConfig(**options)
            ).parameters()
            if p.requires_grad
        ]
        for lib in (trimtab, peft)
    )
    assert ours == theirs


def test_a_circulant_block_shifts_its_kernel():
    held = layer(C3AConfig(block_size=4, **TARGET), 4, 4)
    k = held.c3a_kernel["default"].detach()[0, 0]
    expected = torch.stack([k.roll(p) for p in range(4)]) / 4
    torch.testing.assert_close(held.get_delta_weight("default"), expected)


def test_super_trains_the_largest_entries_and_finds_them_again(tmp_path):
    held = layer(SupertuningConfig(sparsity=0.8, **TARGET))
    moved = held.get_delta_weight("default") != 0
    sizes = held.base_layer.weight.abs()
    assert moved.sum() == 9
    assert sizes[moved].min() >= sizes[~moved].max()


def test_shira_where_a_function_says():
    config = ShiraConfig(r=1, **TARGET)
    config.mask_fn = lambda base, r, random_seed: torch.ones_like(base.weight).tril(-5).add(torch.eye(8, 6)) != 0
    model = nn.Sequential(nn.Linear(6, 8))
    with pytest.raises(trimtab.ConfigError, match=r"0: `mask_fn` gave \(8, 6\) with 12 entries; it must have 14"):
        trimtab.get_peft_model(model, config)
    assert type(model[0]) is nn.Linear
    first = torch.arange(48).view(8, 6) < 14
    config.mask_fn = lambda base, r, random_seed: first
    assert torch.equal(layer(config).get_delta_weight("default") != 0, first)
    config.mask_type, config.mask_fn = "mine", lambda base, r: first
    assert torch.equal(layer(config).get_delta_weight("default") != 0, first)


def test_shira_reads_files_of_a_function_that_is_not_there(tmp_path):
    config = peft.ShiraConfig(r=1, mask_type="mine", **TARGET)
    config.mask_fn = lambda base, r: torch.arange(48).view(8, 6) < 14
    base, x = nn.Sequential(nn.Linear(6, 8)), torch.randn(3, 6)
    theirs = models.shake(peft.get_peft_model(copy.deepcopy(base), config))
    theirs.save_pretrained(tmp_path)
    ours = trimtab.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.warns(trimtab.TrimtabWarning, match="`mask_type`='mine' without `config.mask_fn`"):
        layer(ShiraConfig(r=1, mask_type="mine", **TARGET))


def test_miss_begins_at_random_when_asked():
    model = trimtab.get_peft_model(nn.Sequential(nn.Linear(64, 256)), MissConfig(r=32, init_weights=False, **TARGET))
    k = model.base_model.model[0].miss_block["default"]
    assert k.detach().abs().max() == pytest.approx(1 / 16, rel=0.01)


def test_miss_gives_a_pad_to_inputs_that_do_not_divide():
    held = layer(MissConfig(r=4, **TARGET))
    k = held.miss_block["default"].detach()
    torch.testing.assert_close(held.get_delta_weight("default"), torch.cat([k, k])[:6].T)


WRONG = {
    r"`n_frequency`=0 must be at least 1": lambda: FourierFTConfig(n_frequency=0),
    r"`random_loc_seed`=None: .*; give a number": lambda: WaveFTConfig(random_loc_seed=None),
    r"`n_frequency`=49 is more than the 48 entries": lambda: layer(FourierFTConfig(n_frequency=49, **TARGET)),
    r"`block_size`=0 .*; `init_weights`='x' is unknown": lambda: C3AConfig(block_size=0, init_weights="x"),
    r"`block_size`=3 must divide both sides of a weight, and .* 8 by 6": lambda: layer(
        C3AConfig(block_size=3, **TARGET)
    ),
    r"`r`=10 asks for 140 entries of a weight that has 48": lambda: layer(ShiraConfig(r=10, **TARGET)),
    r"`sparsity`=1 .*; `lora_dropout`=1 .*; `r`=0 ": lambda: SupertuningConfig(sparsity=1, r=0, lora_dropout=1),
    r"`sparsity`=0.999 leaves none of the 48": lambda: layer(SupertuningConfig(sparsity=0.999, **TARGET)),
    r"`r`=4 must divide both sides of a weight for 'bat'": lambda: layer(MissConfig(r=4, init_weights="bat", **TARGET)),
    r"`r`=7 is more than the 6 inputs": lambda: layer(MissConfig(r=7, **TARGET)),
    r"`mini_r`=3 must divide the 8 outputs": lambda: layer(MissConfig(r=2, mini_r=3, init_weights="mini", **TARGET)),
    r"`r`=0 .*; `miss_dropout`=2 .*; `init_weights`='x'": lambda: MissConfig(r=0, miss_dropout=2, init_weights="x"),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be(message):
    with pytest.raises(trimtab.ConfigError, match=message):
        WRONG[message]()

"""KappaTune: the numbers and the choice are PEFT's."""

import peft.helpers as theirs
import pytest
import torch
from tests import models
from torch import nn

from trimtab import LoraConfig, get_peft_model
from trimtab.kappa import KappaTuneSelector, find_kappa_target_modules, kappa

OTHER = {"moe_param_suffixes": ("other",)}


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.lm_head = nn.Linear(5, 7), nn.Linear(6, 9)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.randn(3, 6, 8))
        self.experts.down_proj = nn.Parameter(torch.randn(3, 4, 6))
        self.experts.other = nn.Parameter(torch.randn(3, 4, 6))
        self.emb = nn.Embedding(9, 4)


@pytest.mark.parametrize("base", [Mixture, lambda: models.base("llama")])
@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.5}, {"top_p": 1.0}, {"top_p": 0.01}, {"moe_param_suffixes": ("other",)}]
)
def test_the_choice_is_that_of_peft(base, options):
    found = find_kappa_target_modules(base(), **options, show_progress=False)
    assert found == theirs.find_kappa_target_modules(base(), **options, show_progress=False)


@pytest.mark.parametrize("options", [{}, {"num_modules": 3}, {"threshold": 8.0}, {"top_p": 0.3}, {"num_modules": 99}])
def test_so_are_other_ways_to_choose(options):
    for base in (Mixture(), models.base("llama")):
        one, other = (lib(base, show_progress=False) for lib in (KappaTuneSelector, theirs.KappaTuneSelector))
        assert one.get_best_targets(**options) == other.get_best_targets(**options)
        assert one.get_best_target_parameters(**options) == other.get_best_target_parameters(**options)


def test_what_is_too_large_is_left_out_and_nothing_is_best_that_is_zero():
    selector = KappaTuneSelector(Mixture(), max_dim_size_to_analyze=7, show_progress=False)
    assert list(selector.layers) == ["lin"]
    assert list(selector.parameters) == ["experts.down_proj"]
    assert kappa(torch.zeros(3, 3)) == float("inf")
    assert kappa(torch.diag(torch.tensor([4.0, 2.0]))) == pytest.approx(2)


def test_the_choice_can_be_adapted():
    for name in ("llama", "gpt2"):
        base = models.base(name)
        found = find_kappa_target_modules(base, top_p=0.5, show_progress=False)
        model = get_peft_model(base, LoraConfig(**found))
        assert sorted(layer.path for layer in model.base_model.layers) == sorted(found["target_modules"])

"""Bottleneck adapters: the placements of the papers, and what they compute."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import get_peft_model
from trimtab.methods.bottleneck import WHERE, BottleneckConfig

PATHS = {
    ("bert", "houlsby"): ["attention.output.dense", "output.dense"],
    ("bert", "pfeiffer"): ["output.dense"],
    ("llama", "houlsby"): ["self_attn.o_proj", "mlp.down_proj"],
    ("llama", "parallel"): ["mlp"],
    ("gpt2", "houlsby"): ["attn.c_proj", "mlp.c_proj"],
    ("gpt2", "pfeiffer"): ["mlp.c_proj"],
    ("opt", "pfeiffer"): ["fc2"],
}


@pytest.mark.parametrize(("name", "placement"), PATHS)
def test_default_places_are_those_of_the_papers(name, placement):
    model = get_peft_model(models.base(name), BottleneckConfig(placement=placement))
    found = [layer.path for layer in model.base_model.layers if ".0." in layer.path]
    assert [path.split(".0.")[1] for path in found] == PATHS[name, placement]


@pytest.mark.parametrize("name", sorted(WHERE.keys() & models.ARCHITECTURES.keys()))
@pytest.mark.parametrize("placement", [0, 1, 2])
def test_default_places_exist(name, placement):
    if WHERE[name][placement]:
        get_peft_model(models.base(name), BottleneckConfig(placement=("houlsby", "pfeiffer", "parallel")[placement]))


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
@torch.no_grad()
def test_it_computes_what_the_paper_says(placement):
    config = BottleneckConfig(placement=placement, reduction_factor=2, non_linearity="gelu", scaling=3.0)
    model, seen = models.shake(get_peft_model(models.base("llama"), config)).eval(), []
    layer = next(x for x in model.base_model.layers if "mlp" in x.path)
    layer.base_layer.register_forward_hook(lambda m, i, y: seen.append((i[0], y)))
    layer.register_forward_hook(lambda m, i, y: seen.append(y))
    model(**models.inputs("llama"))
    ((x, y), found), a = seen, layer.adapters["default"]
    inside = torch.nn.functional.gelu((x if placement == "parallel" else y) @ a.D.T + a.d)
    assert inside.shape[-1] == 8
    torch.testing.assert_close(found, y + 3 * (inside @ a.U.T + a.u))


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError) as error:
        BottleneckConfig(placement="behind", non_linearity="sine", reduction_factor=0, bottleneck_dropout=1.0)
    for text in (
        "`placement`='behind' is unknown; choose one of 'houlsby', 'pfeiffer', 'parallel'",
        "`non_linearity`='sine' is unknown; choose one of 'relu'",
        "`reduction_factor`=0 must be above 0",
        "`bottleneck_dropout`=1.0 must be in [0, 1)",
    ):
        assert text in str(error.value)
    with pytest.raises(trimtab.ConfigError, match=r"`target_modules` is unset, and BOTTLENECK has no .*'bert'"):
        get_peft_model(models.base("bert"), BottleneckConfig(placement="parallel"))

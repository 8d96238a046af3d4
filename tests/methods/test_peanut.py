"""PEANuT beyond the table: where its function comes from, and what its configuration refuses."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

import trimtab
from trimtab.methods.peanut import ACTIVATIONS, activation

PeanutConfig = trimtab.CONFIGS["PEANUT"]


def test_torchs_functions_need_no_transformers():
    code = "import sys, trimtab; trimtab.CONFIGS['PEANUT'](act_fn='silu'); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert activation("swish") is activation("silu") is F.silu


def test_a_function_that_only_transformers_has(monkeypatch):
    monkeypatch.delitem(ACTIVATIONS, "gelu_fast", raising=False)
    PeanutConfig(act_fn="gelu_fast")
    monkeypatch.delitem(ACTIVATIONS, "gelu_fast")
    monkeypatch.setitem(sys.modules, "transformers.activations", None)
    with pytest.raises(trimtab.ConfigError, match="`act_fn`='gelu_fast' is unknown"):
        PeanutConfig(act_fn="gelu_fast")


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_names_mean_the_same_as_in_transformers(name):
    x = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "depth": -1}, "PeanutConfig: `r`=0 must be at least 1; `depth`=-1 must be a whole number, 0 or more"),
        ({"depth": 1.5}, r"`depth`=1\.5 must be a whole number"),
        ({"act_fn": "rellu"}, "`act_fn`='rellu' is unknown, or has parameters of its own; choose one"),
        ({"act_fn": "prelu"}, "`act_fn`='prelu' is unknown, or has parameters of its own"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        PeanutConfig(**options)

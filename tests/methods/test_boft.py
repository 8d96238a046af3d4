"""BOFT beyond the table: several factors, dropout, and what is refused."""

import peft
import pytest
import torch
from tests import models

import trimtab

BOFTConfig = trimtab.CONFIGS["BOFT"]


class BlockDiagonal:
    """What the CUDA extension of PEFT computes, without which it takes one factor only."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*b) for b in blocks])]


@pytest.mark.parametrize(("size", "factors"), [(4, 2), (4, 3), (2, 4)])
def test_several_factors_are_those_of_peft(monkeypatch, tmp_path, size, factors):
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", BlockDiagonal)
    options = {"boft_block_size": size, "boft_n_butterfly_factor": factors, "target_modules": ["o_proj", "q_proj"]}
    theirs = models.shake(peft.get_peft_model(models.base("llama"), peft.BOFTConfig(**options)).eval())
    theirs.save_pretrained(tmp_path)
    ours = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path)
    batch = models.inputs("llama")
    expected = models.output(theirs, batch)
    torch.testing.assert_close(models.output(ours, batch), expected, rtol=1e-5, atol=1e-4)
    assert (expected - models.output(models.base("llama"), batch)).abs().max() > 0.1


def test_dropped_blocks_do_not_rotate_and_the_scale_stays():
    config = BOFTConfig(boft_block_size=2, boft_dropout=0.5, target_modules=["lin0"])
    layer = models.shake(trimtab.get_peft_model(models.base("zoo"), config)).base_model.model.lin0
    x, b, s = torch.eye(12), layer.base_layer.bias, layer.boft_s["default"].flatten()
    expected, still = layer.eval()(x), (layer.base_layer(x) - b) * s + b
    torch.manual_seed(1)
    y = layer.train()(x)
    found = [[torch.allclose(y[i : i + 2], t[i : i + 2]) for t in (expected, still)] for i in range(0, 12, 2)]
    assert all(acts != dropped for acts, dropped in found)
    assert len({acts for acts, _ in found}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boft_block_size": 5}, "lin0: `boft_block_size`=5 does not divide the 12 features that are rotated here"),
        ({"boft_block_size": 1}, "lin0: `boft_block_size`=1 makes blocks of 1 feature, in which"),
        ({"boft_block_size": 24}, "lin0: `boft_block_size`=24 does not divide the 12 features"),
        ({"boft_block_size": 0, "boft_block_num": 7}, "lin0: `boft_block_num`=7 does not divide the 12 features"),
        (
            {"boft_n_butterfly_factor": 2},
            r"`boft_n_butterfly_factor`=2 needs blocks of even size whose number 2\^1 divides; here are 3 of size 4",
        ),
        ({"boft_block_size": 3, "boft_n_butterfly_factor": 2}, "blocks of even size .*; here are 4 of size 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.get_peft_model(models.base("zoo"), BOFTConfig(target_modules=["lin0"], **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boft_block_num": 4}, "`boft_block_num`=4 and `boft_block_size`=4: one follows from the other; give one"),
        ({"boft_block_size": -4}, "`boft_block_num`=0 and `boft_block_size`=-4 must not be negative"),
        ({"boft_n_butterfly_factor": 0}, "`boft_n_butterfly_factor`=0 must be at least 1"),
        ({"boft_dropout": 2}, r"`boft_dropout`=2 must be in \[0, 1\)"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=f"BOFTConfig: .*{message}"):
        BOFTConfig(**options)

"""OFT and COFT beyond the table: convolutions, dropout, block sizes, projected gradient descent, and mistakes."""

import peft
import pytest
import torch
from tests import models
from torch import nn

import trimtab
from trimtab.layer import AdapterLayer

OFTConfig = trimtab.CONFIGS["OFT"]
LIBRARIES = {trimtab: OFTConfig, peft: peft.OFTConfig}


class Pixel(nn.Module):
    """Convolutions whose kernel is one pixel, plain and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(6, 8, 1)
        self.groups = nn.Conv2d(8, 4, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.groups(self.one(x))


def both(base: nn.Module, **options: object) -> tuple[nn.Module, nn.Module]:
    """A model by each library, with the same trained adapter."""
    made = []
    for library, config in LIBRARIES.items():
        state = {k: v.clone() for k, v in base.state_dict().items()}
        model = library.get_peft_model(base, config(**options)).eval()
        made.append(models.shake(model))
        base = type(base)()
        base.load_state_dict(state)
    return made[0], made[1]


def test_a_kernel_merges_as_in_peft():
    ours, theirs = both(models.base("zoo"), target_modules=["conv2"], oft_block_size=3)
    merged = [m.merge_and_unload().conv2.weight for m in (ours, theirs)]
    torch.testing.assert_close(*merged)


def test_where_a_kernel_is_one_pixel_forwards_are_the_same():
    ours, theirs = both(Pixel(), target_modules=["one", "groups"], oft_block_size=2)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_blocks_across_the_groups_of_a_convolution_cannot_be_merged():
    ours, theirs = both(Pixel(), target_modules=["groups"], oft_block_size=8)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(trimtab.MergeError, match=r"the merged weight has shape \(4, 8, 1, 1\)"):
        ours.merge_adapter()


def test_dropped_blocks_do_not_rotate():
    config = OFTConfig(oft_block_size=2, module_dropout=0.5, target_modules=["lin0"])
    model = models.shake(trimtab.get_peft_model(models.base("zoo"), config))
    layer = model.base_model.model.lin0
    x = torch.eye(12)
    expected, base = layer.eval()(x), layer.base_layer(x)
    torch.manual_seed(1)
    y = layer.train()(x)
    acts = [torch.equal(y[i : i + 2], expected[i : i + 2]) for i in range(0, 12, 2)]
    dropped = [torch.allclose(y[i : i + 2], base[i : i + 2]) for i in range(0, 12, 2)]
    assert any(acts)
    assert any(dropped)
    assert all(a != d for a, d in zip(acts, dropped, strict=True))


@pytest.mark.parametrize("share", [False, True])
def test_coft_is_trained_as_in_peft(share):
    options = {"oft_block_size": 4, "coft": True, "eps": 0.1, "block_share": share, "target_modules": ["lin0", "emb"]}
    trained = []
    for model in both(models.base("zoo"), **options):
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
        for _ in range(5):
            models.output(model, models.inputs("zoo")).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append({k: p for k, p in model.named_parameters() if "oft_" in k})
    ours, theirs = trained
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-6)


def test_coft_bounds_what_acts_and_leaves_what_is_held_alone_when_not_trained():
    config = OFTConfig(oft_block_size=4, coft=True, eps=0.01, use_cayley_neumann=False, target_modules=["lin0"])
    model = models.shake(trimtab.get_peft_model(models.base("zoo"), config)).eval()
    layer: AdapterLayer = model.base_model.model.lin0
    held = layer.oft_R["default"].weight.clone()
    models.output(model, models.inputs("zoo"))
    assert torch.equal(layer.oft_R["default"].weight, held)
    w, changed = layer.base_layer.weight, layer.effective()[0]
    assert 0 < (changed - w).norm() / w.norm() < 3 * 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oft_block_size": 5}, "lin0: `oft_block_size`=5 does not divide the 12 features that are rotated here"),
        ({}, "lin0: `oft_block_size`=32 does not divide the 12 features"),
        ({"r": 5, "oft_block_size": 0}, "lin0: `r`=5 does not divide the 12 features"),
        ({"r": 12, "oft_block_size": 0}, "lin0: `r`=12 makes blocks of 1 feature, in which there is nothing to rotate"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        trimtab.get_peft_model(models.base("zoo"), OFTConfig(target_modules=["lin0"], **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 4}, "`r`=4 and `oft_block_size`=32: one follows from the other; give one, and 0 for the other"),
        ({"oft_block_size": 0}, "`r`=0 and `oft_block_size`=0: one follows from the other"),
        ({"r": -1, "oft_block_size": 0}, "`r`=-1 and `oft_block_size`=0 must not be negative"),
        ({"module_dropout": 1.0}, r"`module_dropout`=1.0 must be in \[0, 1\)"),
        ({"coft": True, "eps": 0}, "`eps`=0 must be above 0 with `coft`"),
        ({"num_cayley_neumann_terms": 1}, "`num_cayley_neumann_terms`=1 must be at least 2: one is no rotation"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=f"OFTConfig: .*{message}"):
        OFTConfig(**options)

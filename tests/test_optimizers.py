"""Optimisers for LoRA: groups and steps are PEFT's."""

import peft
import peft.optimizers as theirs
import pytest
import torch
from torch import nn

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab import optimizers as ours

OPTIONS = {
    "lora_alpha": 6,
    "target_modules": ["0", "1", "2"],
    "init_lora_weights": False,
    "modules_to_save": ["3", "4"],
}
BOTH = pytest.mark.parametrize("extra", [{}, {"use_rslora": True, "rank_pattern": {"2": 3}}, {"use_dora": True}])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def pair(**extra):
    """The same model in both libraries, by library."""
    options = OPTIONS | {"r": 2} | extra
    if extra.get("use_dora"):
        options["target_modules"] = ["1", "2"]
    made = {lib: lib.get_peft_model(net(), lib.LoraConfig(**options)) for lib in (trimtab, peft)}
    made[peft].load_state_dict(made[trimtab].state_dict())
    return made


def steps(model, optimizer, count=3):
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randint(0, 9, (5, 4), generator=g)).square().sum().backward()
        optimizer.step()
    return {k: p.detach() for k, p in model.named_parameters()}


def same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=tolerance, atol=tolerance)


@BOTH
@pytest.mark.parametrize("options", [{}, {"loraplus_lr_embedding": 3e-5, "loraplus_weight_decay": 0.2}])
def test_loraplus_has_the_groups_of_peft(extra, options):
    options = options | {"lr": 1e-2, "loraplus_lr_ratio": 4.0}
    described = []
    models = pair(**extra)
    for library, optimizers in ((trimtab, ours), (peft, theirs)):
        names = {id(p): k for k, p in models[library].named_parameters()}
        made = optimizers.create_loraplus_optimizer(models[library], torch.optim.AdamW, **options)
        described.append([(g["lr"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in made.param_groups])
        assert type(made) is torch.optim.AdamW
    assert described[0] == described[1]


def test_loraplus_keeps_a_weight_decay_that_it_is_given():
    made = ours.create_loraplus_optimizer(
        pair()[trimtab], torch.optim.AdamW, lr=1, loraplus_lr_ratio=2, weight_decay=0.3, betas=(0.8, 0.9)
    )
    assert [g["weight_decay"] for g in made.param_groups] == [0.3, 0.3, 0.3, 0.0]
    assert made.defaults["betas"] == (0.8, 0.9)


@BOTH
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_riemannian_steps_are_those_of_peft(extra, kind):
    models = pair(**extra)
    done = [
        steps(models[library], optimizers.create_riemannian_optimizer(models[library], kind, lr=1e-3, reg=0.1))
        for library, optimizers in ((trimtab, ours), (peft, theirs))
    ]
    same(*done)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True, "rank_pattern": {"2": 3}}])
def test_lorafa_steps_are_those_of_peft(extra):
    """Nearly: PEFT rounds the projection to bfloat16, and has Adam's correction in another place.

    Without embeddings, whose A PEFT would leave at the zero it begins with.
    """
    models = pair(**extra, target_modules=["1", "2"])
    done = []
    for library, optimizers in ((trimtab, ours), (peft, theirs)):
        made = optimizers.create_lorafa_optimizer(models[library], r=2, lora_alpha=6, lr=1e-2, weight_decay=0.1)
        before = {k: p.clone() for k, p in models[library].named_parameters() if ".lora_A." in k}
        done.append(steps(models[library], made))
        assert all(torch.equal(done[-1][k], t) for k, t in before.items())
    same(*done, tolerance=1e-3)


def test_lorafa_trains_embeddings_as_usual():
    model = pair()[trimtab]
    before = {k: p.clone() for k, p in model.named_parameters()}
    after = steps(model, ours.create_lorafa_optimizer(model, 2, 6, lr=1e-2), 1)
    moved = {k for k, t in after.items() if not torch.equal(t, before[k])}
    assert {k for k in after if "lora_embedding" in k} <= moved
    assert not any(".lora_A." in k for k in moved)


def test_lorafa_steps_along_the_gradient_of_the_weight():
    """By definition: with SGD's step d of B, s d A is the projection on the rows of A of the weight's own step."""
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=2, target_modules=["0"], lora_alpha=6))
    layer = model.base_model.model[0]
    made = ours.create_lorafa_optimizer(model, 2, 6, lr=1.0)
    x = torch.randn(7, 6)
    model(x).square().sum().backward()
    down, w = layer.lora_A["default"].weight, layer.base_layer.weight.detach().clone().requires_grad_()
    (x @ w.T + layer.base_layer.bias).square().sum().backward()
    made.step()
    step = 3 * layer.lora_B["default"].weight.grad @ down
    torch.testing.assert_close(step, w.grad @ torch.linalg.pinv(down) @ down, rtol=1e-3, atol=1e-3)


def test_a_closure_is_called_before_gradients_are_changed():
    model = pair()[trimtab]
    made = ours.create_riemannian_optimizer(model, torch.optim.SGD, lr=1e-3)

    def closure():
        made.zero_grad()
        loss = model(torch.tensor([[1, 2]])).square().sum()
        loss.backward()
        return loss

    losses = [float(made.step(closure)) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert isinstance(made, torch.optim.SGD)


def test_what_cannot_be():
    model = pair()[trimtab]
    wrong = {
        "`loraplus_lr_ratio`=0 must": lambda: ours.create_loraplus_optimizer(
            model, torch.optim.SGD, lr=1, loraplus_lr_ratio=0
        ),
        "`reg`=0 must be above 0": lambda: ours.create_riemannian_optimizer(model, torch.optim.SGD, lr=1, reg=0),
        "`use_rslora`=True is not what": lambda: ours.create_lorafa_optimizer(model, 2, 6, 1, use_rslora=True),
        "no trained LoRA adapters": lambda: ours.create_lorafa_optimizer(net(), 2, 6, 1),
    }
    for message, act in wrong.items():
        with pytest.raises(trimtab.ConfigError, match=message):
            act()

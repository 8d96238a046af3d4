"""AdaLoRA: its cuts beside PEFT's, the budget, files of cut adapters, and what its users get wrong."""

import warnings
from itertools import pairwise

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests import models
from tests.behaviours import same

import trimtab
from trimtab import PeftModel, get_peft_model
from trimtab.methods.adalora import AdaLoraConfig

CONFIGS = {trimtab: AdaLoraConfig, peft: peft.AdaLoraConfig}
TARGETS = ["q_proj", "down_proj"]
OPTIONS = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "total_step": 12, "target_modules": TARGETS}


def made(library=trimtab, **options):
    config = CONFIGS[library](**OPTIONS | {"task_type": "CAUSAL_LM"} | options)
    torch.manual_seed(0)
    return library.get_peft_model(models.base("llama"), config).train()


def step(model, i, optimizer, batch):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(i)
    optimizer.zero_grad()
    return loss.item()


def fit(model, steps=12, lr=0.02):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    return [step(model, i, optimizer, models.inputs("llama")) for i in range(1, steps + 1)]


def e(model):
    return {k: p.detach().clone() for k, p in model.named_parameters() if ".lora_E." in k}


def ranks(model):
    return [int((t != 0).sum()) for t in e(model).values()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"deltaT": 3}, {"tinit": 0, "tfinal": 0, "beta1": 0.6, "beta2": 0.95}])
def test_every_step_is_that_of_peft(options):
    ours, theirs, batch = made(**options), made(peft, **options), models.inputs("llama")
    theirs.load_state_dict(ours.state_dict())
    pair = [(m, torch.optim.Adam([p for p in m.parameters() if p.requires_grad], 0.02)) for m in (ours, theirs)]
    for i in range(1, 15):
        mine, other = (step(m, i, o, batch) for m, o in pair)
        assert mine == pytest.approx(other, rel=1e-4), i
        for (key, mine), other in zip(e(ours).items(), e(theirs).values(), strict=True):
            assert torch.equal(mine == 0, other == 0), (i, key)
            torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3)
    assert sum(ranks(ours)) == 8


def test_it_learns_and_ends_at_its_total_rank():
    """A map of rank 6 in one of two layers: its triplets go where they are needed."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)).requires_grad_(False)
    x, change = torch.randn(256, 16), torch.randn(16, 6) @ torch.randn(6, 16) / 16
    y = base[1](base[0](x)) + x @ change.T
    config = AdaLoraConfig(target_modules=["0", "1"], init_r=6, target_r=4, tinit=20, tfinal=60, total_step=200)
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    losses, total = [], []
    for i in range(1, 201):
        loss = (model(x) - y).pow(2).mean()
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(i)
        optimizer.zero_grad()
        losses.append(loss.item())
        total.append(sum(ranks(model)))
    assert losses[-1] < losses[0] / 20
    assert total[19] == 12
    assert all(a >= b for a, b in pairwise(total))
    assert total[139:] == [8] * 61
    pattern = model.peft_config["default"].rank_pattern
    assert [sum(p) for p in pattern.values()] == ranks(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"target_r": 1}], ids=["", "a layer loses all"])
def test_a_cut_adapter_is_written_cut_and_read_both_ways(options, tmp_path):
    ours = made(**options)
    fit(ours, lr=0.05 if options else 0.02)
    if options:  # leave nothing of the first layer
        layer = ours.base_model.layers[0].adapters["default"]
        layer.E.data.zero_()
        layer.cfg.left.zero_()
        ours.peft_config["default"].rank_pattern[f"{layer.layer.path}.lora_E"] = [False] * 4
    ours.save_pretrained(tmp_path / "a")
    pattern = AdaLoraConfig.from_pretrained(tmp_path / "a").rank_pattern
    assert {k.removesuffix(".lora_E") for k in pattern} == {layer.path for layer in ours.base_model.layers}
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    held = {k: len(t) for k, t in tensors.items() if k.endswith("lora_E")}
    assert held == {f"base_model.model.{k}": sum(left) for k, left in pattern.items()}
    batch = {k: v for k, v in models.inputs("llama").items() if k != "labels"}
    y = ours.eval()(**batch).logits
    again = PeftModel.from_pretrained(models.base("llama"), tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(models.base("llama"), str(tmp_path / "a")).eval()
    same(again(**batch).logits, y)
    same(theirs(**batch).logits, y)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.save_pretrained(tmp_path / "b")
    same(PeftModel.from_pretrained(models.base("llama"), tmp_path / "b")(**batch).logits, y)
    same(again.merge_and_unload()(**batch).logits, y)
    models.shake(ours)
    assert ours.load_adapter(tmp_path / "a", "default") == ([], [])  # into the tensors that are not cut
    same(ours(**batch).logits, y)


def test_training_goes_on_from_a_cut_adapter(tmp_path):
    model = made()
    fit(model, steps=4)
    model.save_pretrained(tmp_path)
    before = AdaLoraConfig.from_pretrained(tmp_path).rank_pattern
    again = PeftModel.from_pretrained(models.base("llama"), tmp_path, is_trainable=True).train()
    assert sum(ranks(again)) == sum(map(sum, before.values())) > 8
    fit(again)
    after = again.peft_config["default"].rank_pattern
    assert sum(ranks(again)) == sum(map(sum, after.values())) == 8
    assert all(not later or earlier for k in before for earlier, later in zip(before[k], after[k], strict=True))


def test_the_loss_has_its_term_in_training_only():
    model, batch = made(orth_reg_weight=7.0), models.inputs("llama")
    with torch.no_grad():
        trained, evaluated = model(**batch).loss, model.eval()(**batch).loss
        tensors = [
            p if ".lora_A." in k else p.T for k, p in model.named_parameters() if ".lora_A." in k or ".lora_B." in k
        ]
        apart = sum((t @ t.T - torch.eye(len(t))).norm() for t in tensors) / len(tensors)
    torch.testing.assert_close(trained, evaluated + 7 * apart)


def test_steps_that_are_not_told(tmp_path):
    model, batch = made(), models.inputs("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
        model(**batch).loss.backward()
        with pytest.warns(trimtab.TrimtabWarning, match="no rank was cut: call `model.base_model.update_and_allocate"):
            model.save_pretrained(tmp_path)
        model.base_model.update_and_allocate(1)
        model.save_pretrained(tmp_path)
    model.zero_grad()
    with pytest.raises(trimtab.AdapterError, match=r"no gradients of 'default': call .* before gradients are cleared"):
        model.base_model.update_and_allocate(2)


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError) as error:
        AdaLoraConfig(
            total_step=10, tinit=6, tfinal=5, target_r=13, deltaT=0, beta1=1.0, init_lora_weights="pissa",
            use_dora=True, use_rslora=True,
        )  # fmt: skip
    for text in (
        "`use_rslora` is an option of LoRA that AdaLoRA has not",
        "Dora is an option of LoRA",
        "`target_r`=13 must be at least 1, and at most `init_r`=12",
        "`total_step`=10 must be the number of training steps, above `tinit`=6 and `tfinal`=5 together",
        "`init_lora_weights`='pissa' must be True or False",
        "`deltaT`=0 must be at least 1",
        "`beta1`=1.0 and `beta2`=0.85 must be in (0, 1)",
    ):
        assert text in str(error.value)
    with pytest.warns(trimtab.TrimtabWarning, match="`r`=16 has no meaning in AdaLoRA"):
        AdaLoraConfig(r=16, total_step=5)

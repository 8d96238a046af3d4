"""`trimtab.audit`: each planted fault is found, a sound model is called sound, and nothing is left behind."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn

import trimtab
from trimtab import LoraConfig, PrefixTuningConfig, audit, get_peft_model

transformers = pytest.importorskip("transformers")

KINDS = {
    "lora": LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1),
    "dora": LoraConfig(target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
    "vera": trimtab.VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "adalora": trimtab.AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM"),
    "loha": trimtab.LoHaConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "oft": trimtab.OFTConfig(target_modules=["q_proj"], oft_block_size=4, task_type="CAUSAL_LM"),
    "ia3": trimtab.IA3Config(task_type="CAUSAL_LM"),
    "bottleneck": trimtab.BottleneckConfig(task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": trimtab.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "bitfit": trimtab.BitFitConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


def llama(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=40, attention_bias=True, attention_dropout=0.1, **sizes, **options)
    )


@pytest.fixture
def batch():
    ids = torch.randint(3, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def levels(found):
    return {finding.level for finding in found.findings}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_adapter_is_called_sound(kind, batch):
    """Also where one tensor starts at zero and hides the gradient of another."""
    found = audit(get_peft_model(llama(), copy.deepcopy(KINDS[kind])), batch)
    assert levels(found) == {"info"}, str(found)
    assert found.ok
    assert found.supervised == pytest.approx([6 / 9] * 4)


def test_full_fine_tuning_is_called_sound(batch):
    model = llama()
    found = audit(model, batch)
    assert levels(found) == {"info"}, str(found)
    assert sum(found.trainable.values()) == found.total == model.num_parameters()


def test_labels_that_are_all_ignored(batch):
    found = audit(llama(), batch | {"labels": torch.full((4, 9), -100)})
    (error,) = [finding for finding in found.findings if finding.level == "error"]
    assert error.found == "no token carries loss: all labels of all 4 samples are -100"
    assert not found.ok


def test_samples_without_loss_are_numbered(batch):
    batch["labels"][[1, 3]] = -100
    found = audit(llama(), batch)
    assert [f.found for f in found.findings if f.level != "info"] == ["2 of 4 samples carry no loss: 1, 3"]


def test_padding_that_carries_loss(batch):
    batch["attention_mask"][0, -2:] = 0
    found = audit(llama(), batch)
    assert found.padding == 2
    assert found.supervised[0] == pytest.approx(4 / 7)
    batch["labels"][0, -2:] = -100
    assert levels(audit(llama(), batch)) == {"info"}


def test_nothing_is_trainable(batch):
    found = audit(llama().requires_grad_(False), batch)
    assert [f.found for f in found.findings if f.level == "error"] == ["no parameter is trainable"]


def test_checkpointing_that_cuts_the_graph(batch):
    """Reentrant checkpointing of layers whose inputs need no gradient: the loss hangs on nothing that is trained."""
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
    for module in model.modules():
        module._forward_hooks.clear()  # as if nobody had let the embeddings' output require a gradient
    with pytest.warns(UserWarning, match="requires_grad=True"):
        found = audit(model, batch)
    assert "no trained parameter gets a gradient" in str(found)
    assert "use_reentrant=False" in str(found)


def test_an_adapter_that_no_gradient_reaches_beside_a_head_that_learns(batch):
    model = get_peft_model(
        llama(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    )
    assert levels(audit(model, batch)) == {"info"}
    model.get_base_model().model.register_forward_hook(lambda module, given, output: _cut(output))
    found = audit(model, batch)
    assert not found.lifeless  # its head learns
    assert {name for name in found.trainable if "lora" in name} == set(found.unused)
    weights = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    weights.get_base_model().lm_head.requires_grad_(True)
    weights.get_base_model().model.register_forward_hook(lambda module, given, output: _cut(output))
    assert "error: no gradient reaches adapter 'default'" in str(audit(weights, batch))


def _cut(output):
    output["last_hidden_state"] = output["last_hidden_state"].detach()
    return output


def test_dead_parameters_by_name(batch):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, labels):
            y = self.used(x) + torch.relu(self.dead(x) - 1e6)
            return {"loss": nn.functional.cross_entropy(y, labels)}

    found = audit(Half(), {"x": torch.randn(3, 4), "labels": torch.tensor([0, 1, 2])})
    assert found.dead == ["dead.weight", "dead.bias"]
    assert found.unused == ["unused.weight", "unused.bias"]
    assert levels(found) == {"info", "warning"}


def test_gradients_that_are_not_finite(batch):
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    next(p for n, p in model.named_parameters() if "layers.1" in n and "lora_A" in n).data[0, 0] = float("nan")
    assert "the loss of the first batch is nan" in str(audit(model, batch))

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.at_zero, self.fine = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return {"loss": (self.at_zero.abs().sqrt() + self.fine * x).sum()}

    found = audit(Root(), {"x": torch.ones(2)})
    assert found.non_finite == ["at_zero"]
    assert not found.ok


def test_a_second_adapter_made_trainable(batch):
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"], task_type="CAUSAL_LM"))
    assert levels(audit(model, batch)) == {"info"}
    model.set_requires_grad("second")
    found = audit(model, batch)
    assert found.idle == found.lifeless == ["second"]
    assert "warning: trained, but not active: adapters 'second'" in str(found)


def test_a_model_without_a_loss_is_told_what_to_give(batch):
    with pytest.raises(trimtab.ConfigError, match=r"output of LlamaForCausalLM has no loss; put `labels` into the b"):
        audit(llama(), {"input_ids": batch["input_ids"]})
    asked = audit(llama(), {"input_ids": batch["input_ids"]}, loss=lambda model, given: model(**given).logits.sum())
    assert asked.ok
    assert asked.supervised == []


def _trained(batch, audited, kind):
    """The state of a model after a few steps with dropout, momentum and running means."""
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    base = llama()
    base.model.norm = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(16), nn.Unflatten(0, (4, 9)))
    model = get_peft_model(base, copy.deepcopy(KINDS[kind])) if kind else base
    model.eval()
    for layer in base.model.layers:
        layer.train()
    model(**batch).loss.backward()
    if audited:
        before = {p: p.grad for p in model.parameters()}
        audit(model, batch)
        assert all(p.grad is before[p] for p in model.parameters())
        assert not model.training
        assert base.model.layers[0].training
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {**model.state_dict(), "draws": torch.tensor([random.random(), numpy.random.rand()])}


@pytest.mark.parametrize("kind", [None, "lora", "prefix"])
def test_a_training_after_an_audit_is_the_same_to_the_bit(kind, batch):
    plain, audited = (_trained(batch, asked, kind) for asked in (False, True))
    assert plain.keys() == audited.keys()
    assert [name for name in plain if not plain[name].equal(audited[name])] == []

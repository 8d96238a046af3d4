"""Poly: errors about tasks, sampling in training, and tasks in a generation."""

import pytest
import torch
from tests import models

import trimtab
from trimtab import PolyConfig, get_peft_model


def adapted(base="llama", **options):
    config = PolyConfig(r=2, n_tasks=2, n_skills=3, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    return models.shake(get_peft_model(models.base(base), config), size=1.0).eval()


def test_a_generation_takes_the_tasks_of_its_rows():
    model, ids = adapted(), models.inputs("llama", 2)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False}
    together = model.generate(input_ids=ids, task_ids=torch.tensor([0, 1]), **options)
    for i in (0, 1):
        alone = model.generate(input_ids=ids[i : i + 1], task_ids=torch.tensor([i]), **options)
        assert torch.equal(alone[0], together[i])


def test_tasks_are_asked_for_and_checked():
    model, batch = adapted(), models.inputs("llama", 2)
    with pytest.raises(trimtab.AdapterError, match="'default' needs `task_ids`, one task for each row"):
        model(**batch)
    with pytest.raises(trimtab.AdapterError, match=r"`task_ids`=\[0, 2\]: 'default' knows the tasks 0 to 1"):
        model(**batch, task_ids=torch.tensor([0, 2]))
    with model.disable_adapter():
        model(**batch)


def test_skills_are_sampled_in_training_only():
    model, batch = adapted(), models.inputs("llama", 2) | {"task_ids": torch.tensor([0, 1])}
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_what_cannot_be():
    with pytest.raises(trimtab.ConfigError, match=r"`r`=0 .*; `n_skills`=0 .*; `poly_type`='x' is unknown"):
        PolyConfig(r=0, n_skills=0, poly_type="x")
    with pytest.raises(trimtab.ConfigError, match="`n_splits`=5 must divide 16 input and 16 output features"):
        adapted(n_splits=5)
    model = adapted()
    with pytest.raises(trimtab.MergeError, match="depends on the task of a row, which no weight can hold"):
        model.merge_adapter()

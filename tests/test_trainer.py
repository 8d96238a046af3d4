"""Transformers' Trainer with our model, unmodified: train, save, resume to the bit, best checkpoint."""

import warnings

import peft
import pytest
import torch
from tests import models
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import trimtab

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
FILES = {"adapter_config.json", "adapter_model.safetensors"}


class Lines(Dataset):
    def __init__(self, count=16, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 64, (count, 6), generator=g)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def model_for(name="llama", **options):
    torch.manual_seed(3)
    options = {"r": 4, "lora_dropout": 0.1, "task_type": models.ARCHITECTURES[name][3]} | options
    return trimtab.get_peft_model(models.base(name), trimtab.LoraConfig(**options))


def trainer(model, folder, steps=4, **options):
    options = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "seed": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    } | options
    data = {"train_dataset": Lines(), "eval_dataset": Lines(4, seed=1)}
    return Trainer(model, TrainingArguments(str(folder), **options), **data)


def tensors(model):
    return {k: v.clone() for k, v in trimtab.get_peft_model_state_dict(model).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def test_trains_only_the_adapter_and_writes_adapter_files(tmp_path):
    model = model_for()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = trainer(model, tmp_path)
    assert run.label_names == ["labels"]
    run.train()
    losses = [x["loss"] for x in run.state.log_history if "loss" in x]
    assert len(losses) == 4
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k, p in model.named_parameters() if p.requires_grad}
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        names = {p.name for p in (tmp_path / checkpoint).iterdir()}
        assert names >= FILES
        assert not {n for n in names if n.startswith("model")}, "the whole model was written"
    again = trimtab.PeftModel.from_pretrained(models.base("llama"), tmp_path / "checkpoint-4")
    batch = models.inputs("llama")
    assert torch.equal(models.output(again, batch), models.output(model.eval(), batch))
    theirs = peft.PeftModel.from_pretrained(models.base("llama"), str(tmp_path / "checkpoint-4")).eval()
    torch.testing.assert_close(models.output(theirs, batch), models.output(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_resumed_equals_uninterrupted(tmp_path, checkpointing):
    options = {}
    if checkpointing:
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    whole = model_for()
    trainer(whole, tmp_path / "whole", **options).train()
    trainer(model_for(), tmp_path / "half", steps=2, **options).train()
    resumed = model_for()
    run = trainer(resumed, tmp_path / "half", **options)
    run.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    assert run.state.global_step == 4
    equal(tensors(resumed), tensors(whole))
    assert any(k.requires_grad for k in resumed.parameters())


def test_reentrant_gradient_checkpointing_reaches_the_adapters(tmp_path):
    model = model_for()
    before = tensors(model)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer(model, tmp_path, **options).train()
    assert not [k for k, v in tensors(model).items() if torch.equal(v, before[k])]


def test_the_best_checkpoint_comes_back(tmp_path):
    model = model_for()
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 4}
    run = trainer(model, tmp_path, steps=6, learning_rate=0.3, **options)
    run.train()
    losses = {x["step"]: x["eval_loss"] for x in run.state.log_history if "eval_loss" in x}
    best = min(losses, key=losses.get)
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = trimtab.load_peft_weights(str(tmp_path / f"checkpoint-{best}"))
    equal(tensors(model), saved)
    assert abs(run.evaluate()["eval_loss"] - losses[best]) < 1e-6
    assert best != 6, "the last step is the best one: nothing had to come back"


def test_a_classifier_with_its_head(tmp_path):
    class Texts(Lines):
        def __getitem__(self, i):
            return {"input_ids": self.ids[i], "labels": self.ids[i, 0] % 3}

    model = model_for("bert")
    run = trainer(model, tmp_path)
    run.train_dataset = Texts()
    run.train()
    again = trimtab.PeftModel.from_pretrained(models.base("bert"), tmp_path / "checkpoint-4")
    equal(tensors(again), tensors(model))
    assert any(".classifier." in k for k in tensors(model))


def test_two_adapters_one_trained(tmp_path):
    model = model_for()
    model.add_adapter("other", trimtab.LoraConfig(r=2))
    before = {k: v.clone() for k, v in model.state_dict().items() if ".other." in k}
    trainer(model, tmp_path).train()
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {p.name for p in (tmp_path / "checkpoint-4").iterdir()} >= FILES | {"other"}


def test_saved_model_folder(tmp_path):
    run = trainer(model_for(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", trimtab.TrimtabWarning)
        run.save_model(str(tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").iterdir()} >= FILES

"""BitFit: that it finds every bias, and the names of methods that PEFT does not have."""

import copy
import pickle

import pytest
from tests import models

import trimtab
from trimtab import PeftType, get_peft_model
from trimtab.methods.bitfit import BitFitConfig


@pytest.mark.parametrize("name", ["zoo", "bert", "gpt2", "qwen2", "vit", "whisper"])
def test_every_bias_is_trained(name):
    task = "SEQ_CLS" if name == "bert" else None  # whose classifier is trained in full
    model = get_peft_model(models.base(name), BitFitConfig(task_type=task))
    found = {f"{layer.path}.{layer.site.biased}" for layer in model.base_model.layers}
    biases = {
        k for k, _ in models.base(name).named_parameters() if k.endswith("bias") and (not task or "class" not in k)
    }
    assert found == biases
    assert sum(p.numel() for k, p in model.named_parameters() if "bitfit" in k) == sum(
        p.numel() for k, p in models.base(name).named_parameters() if k in biases
    )


def test_layers_and_models_without_a_bias():
    with pytest.raises(trimtab.ConfigError, match="trains the biases that a model has, and this one has none"):
        get_peft_model(models.base("llama"), BitFitConfig())
    with pytest.raises(trimtab.ConfigError, match="lin1: this linear layer has no bias to train"):
        get_peft_model(models.base("zoo"), BitFitConfig(target_modules=["lin1"]))


def test_a_method_that_peft_has_not_is_a_member_of_the_enumeration():
    kind = BitFitConfig().peft_type
    assert kind is PeftType.BITFIT is PeftType("BITFIT") is PeftType["BITFIT"] is copy.deepcopy(kind)
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert kind in list(PeftType)[-8:]
    assert kind == kind.value == "BITFIT"
    assert set(trimtab.CONFIGS) <= set(PeftType.__members__)
    assert next(iter(PeftType)) == "PROMPT_TUNING"

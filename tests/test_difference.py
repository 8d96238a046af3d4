"""An adapter whose start changed the base, saved as an ordinary one of the base as it was."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests import models
from torch import nn

import trimtab
from trimtab import AdapterFileError as FileError
from trimtab import ConversionError, LoraConfig, PeftModel, get_peft_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.one, self.two = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.conv, self.head = nn.Conv1d(6, 4, 2), nn.Linear(4, 2)
        self.experts = models.Experts(6, 6)

    def forward(self, ids):
        h = self.experts(self.two(torch.tanh(self.one(self.words(ids)))))
        return self.head(self.conv(h.mT).mT)


X = torch.arange(10).view(2, 5)
OPTIONS = {
    "PiSSA": {},
    "OLoRA": {"init_lora_weights": "olora"},
    "scale by module": {"rank_pattern": {"one": 3}, "alpha_pattern": {"two": 5}},
    "rsLoRA": {"use_rslora": True, "rank_pattern": {"one": 3}, "alpha_pattern": {"two": 5}},
    "DoRA": {"use_dora": True},
    "biases": {"lora_bias": True, "bias": "lora_only"},
    "more than a linear layer": {"target_modules": ["words", "conv"], "modules_to_save": ["head"]},
    "experts": {"target_modules": [], "target_parameters": ["experts.up"]},
}


def started(library=trimtab, base=None, **options):
    kept = {"r": 2, "lora_alpha": 6, "target_modules": ["one", "two"], "init_lora_weights": "pissa"} | options
    return library.get_peft_model(base or Net(), library.LoraConfig(**kept))


def trained(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("case", OPTIONS)
def test_what_was_trained_fits_the_untouched_base(case, tmp_path):
    model = started(**OPTIONS[case])
    model.save_pretrained(tmp_path / "began")
    wanted = trained(model)(X)
    model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "began")
    for library in (trimtab, peft):
        torch.testing.assert_close(library.PeftModel.from_pretrained(Net(), tmp_path / "done")(X), wanted)
    torch.testing.assert_close(model(X), wanted)  # the model itself is as it was
    kept = model.peft_config["default"]
    assert (kept.r, kept.lora_alpha) == (2, 6)


def test_the_file_is_that_of_peft(tmp_path):
    theirs = started(peft)
    theirs.save_pretrained(tmp_path / "began")
    wanted = trained(theirs)(X)
    ours = started()
    ours.load_state_dict(theirs.state_dict())
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.save_pretrained(tmp_path / name, path_initial_model_for_weight_conversion=tmp_path / "began")
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), tmp_path / "theirs")(X), wanted)


def test_a_base_that_was_saved_without_the_trained_part(tmp_path):
    """Where training goes on from a saved base, the adapter was loaded there, and its configuration names no start."""
    model = started()
    model.save_pretrained(tmp_path / "began")
    config = tmp_path / "began" / "adapter_config.json"
    config.write_text(config.read_text().replace('"pissa"', "true"))
    rest = copy.deepcopy(model).unload()
    model = trained(PeftModel.from_pretrained(rest, tmp_path / "began", is_trainable=True, strict=False))
    model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "began")
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), tmp_path / "done")(X), model(X))


IMPOSSIBLE = {
    "its base was not changed": (LoraConfig, {"init_lora_weights": "gaussian"}, "'gaussian' left the base as it was"),
    "no such rule": (LoraConfig, {"use_bdlora": {"match_strict": False}}, "'default' is of BdLora, and only"),
    "no product": (trimtab.LoHaConfig, {}, "'default' is of LoHa, and only updates B A"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_has_no_such_form(case, tmp_path):
    config, options, message = IMPOSSIBLE[case]
    model = get_peft_model(Net(), config(r=2, target_modules=["two"], **options))
    model.save_pretrained(tmp_path / "began")
    with pytest.raises(ConversionError, match=message) as caught:
        model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "began")
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "done").exists()


def test_another_adapter_than_the_one_that_began(tmp_path):
    model = started()
    started(r=3).save_pretrained(tmp_path / "other")
    with pytest.raises(
        FileError, match=r"other is not how 'default' began: .*two.lora_B.weight' differ or are missing"
    ):
        model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "other")
    assert not (tmp_path / "done").exists()


def test_an_effect_that_comes_and_goes_with_the_input(tmp_path):
    model = models.base("llama")
    model = get_peft_model(model, LoraConfig(alora_invocation_tokens=[1], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "began")
    with pytest.raises(ConversionError, match=r"'default' depends on .*, and what its start changed does not"):
        model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "began")

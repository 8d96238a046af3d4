"""Prompts in files: both ways with PyPI peft, and training that goes on exactly."""

import warnings
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.prompts.setting import EXAMPLES, METHODS, able, adapted, base, batch, config_of, moved, result, train

import trimtab
from trimtab.errors import AdapterFileError

peft = pytest.importorskip("peft")

CELLS = [
    *((a, "CAUSAL_LM") for a in ("llama", "qwen3", "gemma", "gemma3", "gpt2", "opt", "bloom")),
    *((a, "SEQ_2_SEQ_LM") for a in ("t5", "bart", "m2m100")),
    *((a, "SEQ_CLS") for a in ("bert", "roberta", "llama")),
    *((a, "TOKEN_CLS") for a in ("bert", "gpt2")),
    *((a, "QUESTION_ANS") for a in ("bert", "llama")),
    *((a, "FEATURE_EXTRACTION") for a in ("bert", "llama")),
]
TABLE = [(a, t, m) for a, t in CELLS for m in METHODS if t in METHODS[m].peft]
RESUMED = [("llama", "CAUSAL_LM"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"), ("bert", "SEQ_CLS")]
ROWS = [(a, t, m) for a, t in RESUMED for m in able(t)]


@pytest.mark.parametrize(("arch", "task", "method"), TABLE)
def test_outputs_and_files_both_ways(arch, task, method, tmp_path):
    inputs, plain = batch(arch, task, labels=False, method=method), batch(arch, task, labels=False)
    length = None if task == "SEQ_CLS" else 5 if task == "SEQ_2_SEQ_LM" else 7  # peft keeps virtual positions
    torch.manual_seed(5)
    theirs = moved(peft.get_peft_model(base(arch, task), config_of(peft, method, task)).eval(), by=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(
            result(loaded(**inputs), length), result(theirs(**inputs), length), atol=1e-5, rtol=0
        )
    ours = moved(adapted(arch, task, method), by=0.3)
    shapes = {k: p.shape for k, p in ours.named_parameters() if p.requires_grad}
    assert shapes == {k: p.shape for k, p in theirs.named_parameters() if p.requires_grad}
    ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(base(arch, task), tmp_path / "ours").eval()
        torch.testing.assert_close(result(loaded(**inputs), length), result(ours(**inputs), length), atol=1e-5, rtol=0)
        assert not torch.allclose(result(ours(**inputs), length), result(base(arch, task)(**plain), length), atol=1e-6)
    said, known = ours.peft_config["default"].to_dict(), theirs.peft_config["default"].to_dict()
    known |= {"modules_to_save": list(dict.fromkeys(known["modules_to_save"])) if known["modules_to_save"] else None}
    skipped = ("auto_mapping", "base_model_name_or_path", *(["modules_to_save"] if task == "QUESTION_ANS" else []))
    assert {k: v for k, v in said.items() if k not in skipped} == {k: v for k, v in known.items() if k not in skipped}


@pytest.mark.parametrize("method", METHODS)
def test_fields_and_defaults_are_those_of_peft(method):
    options = EXAMPLES | {"task_type": "CAUSAL_LM"} if method == "cpt" else {}
    known = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[type(config_of(trimtab, method, "CAUSAL_LM")).kind]
    ours = type(config_of(trimtab, method, "CAUSAL_LM"))
    assert ours(**options).to_dict() == known(**options).to_dict()


@pytest.mark.parametrize(("arch", "task", "method"), ROWS)
def test_training_goes_on_exactly_after_saving(arch, task, method, tmp_path):
    inputs = batch(arch, task, method=method)
    through = train(adapted(arch, task, method), inputs, 4)
    half = train(adapted(arch, task, method), inputs, 2)
    half.save_pretrained(tmp_path)
    resumed = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path, is_trainable=True)
    train(resumed, inputs, 2)
    expected = dict(through.named_parameters())
    start = dict(adapted(arch, task, method).named_parameters())
    moved = [n for n, p in resumed.named_parameters() if p.requires_grad and not torch.equal(p, start[n])]
    assert len(moved) == sum(p.requires_grad for p in start.values())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("method", "more"),
    [("prompt", 0), ("prefix", 0), ("prefix-projected", 5), ("p-mlp", 7), ("p-lstm", 21), ("cpt", 2)],
)
def test_a_file_holds_the_prompt_and_what_made_it(method, more, tmp_path):
    model = adapted("llama", "CAUSAL_LM", method, **({"encoder_dropout": 0.5} if method == "p-lstm" else {})).train()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = {f"prompt_encoder.{k}" for k in model.prompt_encoder["default"].state_dict()} if more else set()
    assert len(names) == more
    assert tensors.keys() == {"prompt_embeddings", *names}
    assert model.prompt_encoder["default"].training
    finished = model.eval().prompt_encoder["default"]()  # without dropout
    torch.testing.assert_close(tensors["prompt_embeddings"], finished)
    frozen = trimtab.PeftModel.from_pretrained(base("llama", "CAUSAL_LM"), tmp_path)
    assert [n for n, _ in frozen.prompt_encoder.named_parameters()] == ["default.embedding.weight"]
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_table_saved_by_peft_can_be_trained_on_but_not_what_more_made(method, tmp_path):
    theirs = peft.get_peft_model(base("llama", "CAUSAL_LM"), config_of(peft, method, "CAUSAL_LM"))
    theirs.save_pretrained(tmp_path)
    plain = base("llama", "CAUSAL_LM")
    if method in ("prompt", "prefix", "cartridge", "multitask"):
        ours = trimtab.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
        train(ours, batch("llama", "CAUSAL_LM", method=method), 1)
        return
    with pytest.raises(AdapterFileError, match=r"finished prompt .* not what made it.*is_trainable=False"):
        trimtab.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    adapted("bert", "SEQ_CLS", "p-mlp").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    wrong = {k: t for k, t in tensors.items() if "mlp_head.2.bias" not in k}
    wrong |= {"prompt_encoder.embedding.weight": torch.ones(3, 32), "nonsense": torch.ones(1)}
    save_file(wrong, file)
    model = adapted("bert", "SEQ_CLS", "p-mlp", seed=8)
    before = deepcopy(model.state_dict())
    with pytest.raises(AdapterFileError) as error:
        model.load_adapter(tmp_path, "default", is_trainable=True)
    for part in (r"file has (3, 32), the model (4, 32)", "mlp_head.2.bias: in the model", "nonsense: in the file"):
        assert part in str(error.value)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())

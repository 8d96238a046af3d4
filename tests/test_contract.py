"""The strict contract between a file, an adapter and its base: everything wrong is said at once, nothing is changed."""

import json
import pickle
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import models
from tests.behaviours import same_state, state

import trimtab
from trimtab import AdapterFileError, LoraConfig, PeftModel, TrimtabWarning, get_peft_model

WEIGHTS = "adapter_model.safetensors"
OPTIONS = {"r": 4, "target_modules": ["lin0", "lin1"]}


def trained(**options):
    return models.shake(get_peft_model(models.base("zoo"), LoraConfig(**OPTIONS | options))).eval()


@pytest.fixture
def folder(tmp_path):
    trained().save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change, keep_fingerprint=False):
    """Change the tensors of a file in place."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata if keep_fingerprint else {"format": "pt"})


def refused(folder, match, seed=0):
    """Both ways of loading refuse the file, say why, and leave the model as it was. Returns the message."""
    base = models.base("zoo", seed)
    before, modules = state(base), [type(m) for m in base.modules()]
    with pytest.raises(AdapterFileError, match=match) as caught:
        PeftModel.from_pretrained(base, folder)
    same_state(base, before)
    assert [type(m) for m in base.modules()] == modules

    model = models.shake(get_peft_model(models.base("zoo", seed), LoraConfig(**OPTIONS)))
    before = state(model)
    for name in ("other", "default"):
        with pytest.raises(AdapterFileError, match=match):
            model.load_adapter(folder, name)
        same_state(model, before)
        assert list(model.peft_config) == model.active_adapters == ["default"]
    return str(caught.value)


def accepted(folder, seed=0):
    """`strict=False` loads it with one warning, which is returned."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(models.base("zoo", seed), folder, strict=False)
    (warning,) = [w for w in seen if issubclass(w.category, TrimtabWarning)]
    assert warning.filename == __file__
    assert models.output(model, models.inputs("zoo")).isfinite().all()
    assert not [k for k, t in model.state_dict().items() if t.is_meta]
    return str(warning.message)


# the base
def test_another_base(folder):
    text = refused(folder, "made on another base model: .* tensors differ", seed=1)
    assert "lin0.weight: other values" in text
    assert "strict=False" in text
    assert "another base model" in accepted(folder, seed=1)


def test_a_base_of_another_shape(folder):
    other = models.base("zoo")
    other.head = torch.nn.Linear(8, 4)
    with pytest.raises(
        AdapterFileError, match=r"head.weight: the adapter's base has shape \(3, 8\), this one \(4, 8\)"
    ):
        PeftModel.from_pretrained(other, folder)


def test_a_base_that_lacks_a_tensor(folder):
    other = models.base("zoo")
    other.lin0.bias = None
    with pytest.raises(AdapterFileError, match=r"lin0.bias: the adapter's base has it, this one has not"):
        PeftModel.from_pretrained(other, folder)


def test_a_random_head_that_was_not_saved(tmp_path):
    def base(seed):
        model = models.base("bert")
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.classifier.weight, std=0.02)
        return model

    get_peft_model(base(1), LoraConfig()).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match=r"classifier.weight(?s:.*)name it in `modules_to_save` when training"):
        PeftModel.from_pretrained(base(2), tmp_path)
    PeftModel.from_pretrained(base(1), tmp_path)
    get_peft_model(base(1), LoraConfig(modules_to_save=["classifier"])).save_pretrained(tmp_path)
    PeftModel.from_pretrained(base(2), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_number_format(folder, dtype):
    PeftModel.from_pretrained(models.base("zoo", dtype=dtype), folder)


def test_training_the_adapter_does_not_change_the_fingerprint(tmp_path):
    model = get_peft_model(models.base("zoo"), LoraConfig(**OPTIONS, modules_to_save=["head"], bias="all"))
    models.shake(model)
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(models.base("zoo"), tmp_path)


def test_a_second_adapter_is_saved_with_the_fingerprint_of_the_bare_base(tmp_path):
    model = trained()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["c1"]))
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    for part in ("", "other"):
        PeftModel.from_pretrained(models.base("zoo"), tmp_path / part)


# the tensors
KEY = "base_model.model.lin0.lora_A.weight"


def test_everything_wrong_is_said_at_once(folder):
    def change(tensors):
        tensors[KEY] = torch.zeros(5, 12)
        tensors["base_model.model.lin9.lora_A.weight"] = tensors.pop("base_model.model.lin1.lora_A.weight")

    edit(folder, change)
    text = refused(folder, "1 other shapes, 1 missing, 1 left over")
    assert f"{KEY}: the file has (5, 12), the model (4, 12)" in text
    assert "base_model.model.lin1.lora_A.weight: in the model, not in the file" in text
    assert "base_model.model.lin9.lora_A.weight: in the file, not in the model" in text
    assert "Nothing was loaded. strict=False loads what fits." in text
    assert "1 other shapes, 1 missing, 1 left over" in accepted(folder)


@pytest.mark.parametrize(
    "change",
    [lambda t: t.pop(KEY), lambda t: t.update(extra=torch.ones(2)), lambda t: t.update({KEY: t[KEY][:2].clone()})],
    ids=["missing", "left over", "shape"],
)
def test_one_thing_wrong(folder, change):
    edit(folder, change, keep_fingerprint=True)
    refused(folder, "does not fit the model")
    model = PeftModel.from_pretrained(models.base("zoo"), folder, strict=False)
    assert (models.output(model, models.inputs("zoo")) - models.output(models.base("zoo"), models.inputs("zoo"))).any()


def test_a_file_without_effect_is_refused_even_if_not_strict(folder):
    edit(folder, lambda t: [t.update({"x" + k: t.pop(k)}) for k in list(t)])
    refused(folder, "None of its tensors finds a place: is it an adapter of another model?")
    with pytest.raises(AdapterFileError, match="None of its tensors finds a place"):
        PeftModel.from_pretrained(models.base("zoo"), folder, strict=False)


def test_an_untrained_adapter_is_fine(tmp_path):
    get_peft_model(models.base("zoo"), LoraConfig(**OPTIONS)).save_pretrained(tmp_path)
    PeftModel.from_pretrained(models.base("zoo"), tmp_path)


def test_a_long_list_is_cut(tmp_path):
    get_peft_model(models.base("llama"), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    edit(tmp_path, lambda t: [t.pop(k) for k in list(t)[:26]])
    with pytest.raises(AdapterFileError, match="  and 6 more"):
        PeftModel.from_pretrained(models.base("llama"), tmp_path)


def test_files_of_peft_carry_no_fingerprint_and_load(tmp_path):
    peft.get_peft_model(models.base("zoo"), peft.LoraConfig(**OPTIONS)).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        PeftModel.from_pretrained(models.base("zoo", seed=1), tmp_path)
    edit(tmp_path, lambda t: t.pop(KEY))
    refused(tmp_path, f"{KEY}: in the model, not in the file")


def test_state_dict_function_is_as_strict():
    model = trained()
    before = state(model)
    tensors = trimtab.get_peft_model_state_dict(model)
    wrong = {k: v + 1 for k, v in tensors.items()} | {KEY: torch.zeros(5, 12)}
    with pytest.raises(AdapterFileError, match=r"the file has \(5, 12\), the model \(4, 12\)"):
        trimtab.set_peft_model_state_dict(model, wrong)
    same_state(model, before)
    with pytest.warns(TrimtabWarning, match=r"the file has \(5, 12\)"):
        trimtab.set_peft_model_state_dict(model, wrong, ignore_mismatched_sizes=True)
    with pytest.warns(TrimtabWarning, match="1 missing"):
        result = trimtab.set_peft_model_state_dict(model, {k: v for k, v in tensors.items() if k != KEY}, strict=False)
    assert result == ([KEY], [])


# the file itself
def test_pickled_weights_are_not_read(folder):
    class Bomb:
        def __reduce__(self):
            return (Path(folder / "exploded").touch, ())

    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "adapter_model.bin.*pickled weights are never read; convert them to safetensors")
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\0\0\0\0\0\0\0{not json"], ids=["empty", "text", "header"])
def test_a_damaged_file(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, f"{WEIGHTS} is no readable safetensors file")


def test_a_truncated_file(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-10])
    refused(folder, "is no readable safetensors file")


def test_no_file_at_all(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, f"no {WEIGHTS} in .*: the folder holds 'README.md', 'adapter_config.json'")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"no adapter_config.json in .*is it an adapter\?"):
        PeftModel.from_pretrained(models.base("zoo"), folder)


def test_neither_a_folder_nor_on_the_hub(tmp_path):
    with pytest.raises(AdapterFileError, match="neither in a folder of that name nor to be had from the hub"):
        PeftModel.from_pretrained(models.base("zoo"), tmp_path.name + "/does-not-exist")


@pytest.mark.parametrize("file", [WEIGHTS, "adapter_config.json"])
def test_a_failure_in_the_middle_leaves_the_old_file(folder, monkeypatch, file):
    """The last step fails, as on a full disk: what was there before is whole, and no part of the new one is left."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model = trained(lora_alpha=32)
    from trimtab import files

    replace = files.os.replace

    def full(source, target):
        if Path(target).name == file:
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(folder)
    after = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert after.keys() == before.keys()
    assert after[file] == before[file]


def test_tensors_without_values_are_not_written(folder):
    before = (folder / WEIGHTS).read_bytes()
    model = get_peft_model(models.base("zoo"), LoraConfig(**OPTIONS), low_cpu_mem_usage=True)
    with pytest.raises(AdapterFileError, match="4 tensors of 'default' have no values"):
        model.save_pretrained(folder)
    model = trained()
    sharded = {k: torch.empty(0) for k in model.state_dict() if "lora_A" in k}
    with pytest.raises(AdapterFileError, match="a sharded model needs `state_dict`"):
        model.save_pretrained(folder, state_dict=sharded)
    assert (folder / WEIGHTS).read_bytes() == before


def test_state_dict_given_to_save_is_what_is_saved(tmp_path):
    model = trained()
    given = {k: v + 1 for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=given)
    saved = load_file(tmp_path / WEIGHTS)
    held = trimtab.get_peft_model_state_dict(model)
    assert all(torch.equal(saved[k], held[k] + 1) for k in held)


def test_what_is_saved_where(tmp_path):
    model = trained()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["c1"]))
    model.save_pretrained(tmp_path / "both")
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"README.md", "adapter_config.json", WEIGHTS, "other"}
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"other"}
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["inference_mode"] is True
    assert model.peft_config["default"].inference_mode is False


def test_a_card_that_a_user_wrote_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    trained().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_key_mapping_renames_keys(folder):
    edit(folder, lambda t: [t.update({k.replace("lin0", "old0"): t.pop(k)}) for k in list(t) if "lin0" in k])
    model = PeftModel.from_pretrained(models.base("zoo"), folder, key_mapping={r"\bold0\b": "lin0"})
    assert torch.equal(models.output(model, models.inputs("zoo")), models.output(trained(), models.inputs("zoo")))


def test_embeddings_are_saved_when_asked(tmp_path):
    model = models.shake(get_peft_model(models.base("llama"), LoraConfig(r=2)))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    key = "base_model.model.model.embed_tokens.weight"
    assert torch.equal(load_file(tmp_path / WEIGHTS)[key], model.get_input_embeddings().weight)
    base = models.base("llama")
    base.get_input_embeddings().weight.data.zero_()
    again = PeftModel.from_pretrained(base, tmp_path, strict=False)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_tied_embeddings_are_saved_twice_like_peft(tmp_path):
    for library in (trimtab, peft):
        model = library.get_peft_model(models.base("llama-tied"), library.LoraConfig(r=2))
        model.save_pretrained(tmp_path / library.__name__, save_embedding_layers=True)
    ours, theirs = (load_file(tmp_path / n / WEIGHTS) for n in ("trimtab", "peft"))
    assert ours.keys() == theirs.keys()
    PeftModel.from_pretrained(models.base("llama-tied"), tmp_path / "trimtab")


def test_biases_beside_a_head_trained_in_full(tmp_path):
    """PEFT's file holds the head's bias three times."""
    options = {"r": 4, "target_modules": ["lin0"], "bias": "all", "modules_to_save": ["head"]}
    theirs = models.shake(peft.get_peft_model(models.base("zoo"), peft.LoraConfig(**options))).eval()
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(models.base("zoo"), tmp_path)
    batch = models.inputs("zoo")
    torch.testing.assert_close(models.output(ours, batch), models.output(theirs, batch), rtol=1e-5, atol=1e-5)


def test_an_adapter_without_values_does_not_compute():
    model = get_peft_model(models.base("zoo"), LoraConfig(**OPTIONS), low_cpu_mem_usage=True)
    with pytest.raises(trimtab.AdapterError, match=r"'lin0': 'default' has no values yet .* load them first"):
        models.output(model, models.inputs("zoo"))
    with pytest.raises(trimtab.MergeError, match="has no values yet"):
        model.merge_adapter()

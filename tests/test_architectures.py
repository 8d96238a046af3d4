"""Real architectures, tiny: adapt, train, save, load, merge, generate, and both ways with PEFT."""

import copy

import peft
import pytest
import torch
from tests import models
from tests.models import ARCHITECTURES

import trimtab

NO_DEFAULT = {"m2m100", "whisper", "vit"}  # neither here nor in PEFT
TARGETS = {"m2m100": ["q_proj", "v_proj"], "whisper": ["q_proj", "v_proj"], "vit": ["q_proj", "v_proj"]}
HEADS = {"bert": "classifier", "roberta": "classifier", "bert-qa": "qa_outputs", "llama-cls": "score"}
HEAD_TWICE = {("roberta", "all-linear"), ("bert-qa", "all-linear")}  # PEFT adapts the head too, then cannot train it
GENERATES = ["llama", "gpt2", "opt", "qwen2", "qwen3", "gemma2", "gemma3", "t5", "bart", "m2m100", "whisper"]

pytestmark = pytest.mark.filterwarnings("ignore")
everywhere = pytest.mark.parametrize("name", ARCHITECTURES)


def config(name, library=trimtab, **options):
    options = {"r": 4, "task_type": ARCHITECTURES[name][3], "target_modules": TARGETS.get(name)} | options
    return library.LoraConfig(**options)


def adapted(name, library=trimtab, **options):
    torch.manual_seed(3)  # heads of a task are new
    return library.get_peft_model(models.base(name), config(name, library, **options)).eval()


def generate(model, name):
    batch = {k: v for k, v in models.inputs(name).items() if k in ("input_ids", "attention_mask", "input_features")}
    return model.generate(**batch, max_new_tokens=4, do_sample=False)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("targets", ["default", "all-linear"])
@everywhere
def test_same_modules_as_peft(name, targets):
    given = {"target_modules": "all-linear"} if targets == "all-linear" else {}
    ours = adapted(name, **given)
    if (name, targets) in HEAD_TWICE:
        with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
            adapted(name, peft, **given)
        return
    theirs = adapted(name, peft, **given)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    trainable = [{k for k, p in m.named_parameters() if p.requires_grad} for m in (ours, theirs)]
    assert trainable[0] == trainable[1]
    assert type(ours).__name__ == type(theirs).__name__


@pytest.mark.parametrize("name", sorted(NO_DEFAULT))
def test_no_default_targets(name):
    with pytest.raises(trimtab.ConfigError, match=f"no default for architecture '{name.replace('m2m', 'm2m_')}'"):
        adapted(name, target_modules=None)
    with pytest.raises(ValueError, match="specify"):
        adapted(name, peft, target_modules=None)


@everywhere
def test_train_save_load_merge(name, tmp_path):
    model, batch = adapted(name), models.inputs(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainable = {k for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        y = model(**batch)
        loss = y.loss if getattr(y, "loss", None) is not None else y.last_hidden_state.pow(3).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[2] < losses[0]
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == trainable

    expected = models.output(model, batch)
    model.save_pretrained(tmp_path)
    again = trimtab.PeftModel.from_pretrained(models.base(name), tmp_path)
    assert type(again) is type(model)
    assert torch.equal(models.output(again, batch), expected)
    assert not [k for k, p in again.named_parameters() if p.requires_grad]
    theirs = peft.PeftModel.from_pretrained(models.base(name), str(tmp_path)).eval()
    close(models.output(theirs, batch), expected)

    if name in GENERATES:
        texts = generate(model, name)
        assert texts.shape[0] == 4
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert type(merged) is type(models.base(name))
    close(models.output(merged, batch), expected)
    if name in GENERATES:
        assert torch.equal(generate(merged, name), texts)


@everywhere
def test_reads_what_peft_wrote(name, tmp_path):
    theirs = models.shake(adapted(name, peft), size=0.1)
    theirs.save_pretrained(tmp_path)
    ours = trimtab.PeftModel.from_pretrained(models.base(name), tmp_path)
    batch = models.inputs(name)
    close(models.output(ours, batch), models.output(theirs, batch))
    if name in GENERATES:
        assert torch.equal(generate(ours, name), generate(theirs, name))


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_trained_and_restored(name, tmp_path):
    model = models.shake(adapted(name))
    head = HEADS[name]
    assert head in model.peft_config["default"].modules_to_save
    held = {k: v for k, v in trimtab.get_peft_model_state_dict(model).items() if f".{head}." in k}
    assert held
    assert any(k.endswith(f"{head}.weight") for k in held)
    model.save_pretrained(tmp_path)
    other = models.base(name)
    for p in getattr(other, head).parameters():  # a head that began elsewhere, as it does in another process
        p.data.add_(1)
    again = trimtab.PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(models.output(again, models.inputs(name)), models.output(model, models.inputs(name)))


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_with_an_adapter_a_row(name, beams):
    model = models.shake(adapted(name), only="default")
    model.add_adapter("other", config(name))
    model.set_requires_grad("other")
    models.shake(model, 8, only="other")
    batch = {k: v for k, v in models.inputs(name).items() if k != "labels"}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    alone = {}
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        alone[adapter] = model.generate(**batch, **options)
    with model.disable_adapter():
        alone["__base__"] = model.generate(**batch, **options)
    assert len({str(t.tolist()) for t in alone.values()}) == 3, "the adapters make no difference"
    names = ["other", "__base__", "default", "other"]
    found = model.generate(**batch, **options, adapter_names=names)
    for i, adapter in enumerate(names):
        assert torch.equal(found[i], alone[adapter][i])
    assert not torch.equal(found, model.generate(**batch, **options))  # no name is left behind


@pytest.mark.slow
def test_compile_a_whole_model():
    model = models.shake(adapted("llama"))
    batch = {"input_ids": models.inputs("llama")["input_ids"]}
    expected = models.output(model, batch)
    torch._dynamo.reset()
    found = models.output(torch.compile(model, fullgraph=True, backend="aot_eager"), batch)
    torch._dynamo.reset()
    close(found, expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    found = []
    for on in (False, True):
        base = models.base("llama").train()
        if on:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model = models.shake(trimtab.get_peft_model(base, config("llama")))
        model(**models.inputs("llama")).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*found, strict=True):
        close(checkpointed, plain)


def test_inject_without_a_wrapper(tmp_path):
    ours, theirs = models.base("vit"), models.base("vit")
    trimtab.inject_adapter_in_model(config("vit"), ours)
    peft.inject_adapter_in_model(config("vit", peft), theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    models.shake(theirs)
    tensors = peft.get_peft_model_state_dict(theirs)
    result = trimtab.set_peft_model_state_dict(ours, tensors)
    assert result == ([], [])
    assert trimtab.get_peft_model_state_dict(ours).keys() == tensors.keys()
    batch = models.inputs("vit")
    close(models.output(ours, batch), models.output(theirs, batch))


def test_inject_where_a_state_dict_says():
    tensors = trimtab.get_peft_model_state_dict(adapted("llama", layers_to_transform=[1]))
    tensors = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    model = models.base("llama")
    trimtab.inject_adapter_in_model(config("llama"), model, state_dict=tensors)
    assert {s.name for s in trimtab.get_layer_status(model)} == {f"model.layers.1.self_attn.{k}_proj" for k in "qv"}


@pytest.mark.parametrize("library", [trimtab, peft])
def test_auto_classes_load_base_and_adapter(library, tmp_path):
    base = models.base("llama")
    base.save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = models.shake(library.get_peft_model(base, config("llama", library))).eval()
    model.save_pretrained(tmp_path / "adapter")
    batch = models.inputs("llama")
    again = trimtab.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert isinstance(again, trimtab.PeftModelForCausalLM)
    close(models.output(again, batch), models.output(model, batch))


def test_numbers_of_parameters_are_those_of_peft(capsys):
    ours, theirs = adapted("bert"), adapted("bert", peft)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    ours.print_trainable_parameters()
    mine = capsys.readouterr().out
    theirs.print_trainable_parameters()
    assert mine == capsys.readouterr().out

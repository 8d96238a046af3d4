"""Multitask prompt tuning: a task's prompt, starts from source tasks, beams, and what a call must say."""

import pytest
import torch
from safetensors.torch import load_file
from tests.prompts.setting import adapted, base, batch, config_of, moved

import trimtab

peft = pytest.importorskip("peft")

PARTS = ("embedding.weight", "prefix_task_cols", "prefix_task_rows")
SOURCES = ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"]
LM = ("llama", "CAUSAL_LM")


@pytest.fixture
def source(tmp_path):
    """An adapter of three tasks, in a folder."""
    model = moved(adapted(*LM, "multitask"))
    model.save_pretrained(tmp_path / "source")
    return model.prompt_encoder["default"], tmp_path / "source"


def test_a_task_multiplies_the_shared_prompt():
    model = moved(adapted(*LM, "multitask"))
    shared, cols, rows = (model.prompt_encoder["default"].get_parameter(k) for k in PARTS)
    prompt = model.get_prompt(2, task_ids=torch.tensor([2, 0]))
    for row, task in enumerate((2, 0)):
        torch.testing.assert_close(
            prompt[row], shared * sum(torch.outer(cols[task][:, r], rows[task][r]) for r in (0, 1))
        )


def test_a_file_holds_all_tasks(source):
    encoder, folder = source
    tensors = load_file(folder / "adapter_model.safetensors")
    names = dict(zip(("prompt_embeddings", *PARTS[1:]), PARTS, strict=True))
    assert tensors.keys() == names.keys()
    assert all(torch.equal(tensors[key], encoder.get_parameter(name)) for key, name in names.items())


@pytest.mark.parametrize("start", SOURCES)
@pytest.mark.parametrize("path", ["", "adapter_model.safetensors"])
def test_source_tasks_start_another_as_in_peft(start, path, source):
    options = {
        "prompt_tuning_init": start, "prompt_tuning_init_state_dict_path": str(source[1] / path), "num_tasks": 1,
        "prompt_tuning_init_task": 1,
    }  # fmt: skip
    ours = adapted(*LM, "multitask", **options)
    if not path:  # PEFT reads no folder
        options["prompt_tuning_init_state_dict_path"] += "/adapter_model.safetensors"
    theirs = peft.get_peft_model(base(*LM), config_of(peft, "multitask", "CAUSAL_LM", **options))
    ones, twos = (dict(m.prompt_encoder["default"].named_parameters()) for m in (ours, theirs))
    alike = [name for name in PARTS if torch.allclose(ones[name], twos[name], rtol=0, atol=1e-7)]
    assert alike == list(PARTS[:1] if start == "ONLY_SOURCE_SHARED" else PARTS)  # the rest begins at random


def test_a_saved_adapter_needs_its_source_no_more(source, tmp_path):
    options = {"prompt_tuning_init_state_dict_path": str(source[1]), "num_tasks": 1}
    model = moved(adapted(*LM, "multitask", prompt_tuning_init="AVERAGE_SOURCE_TASKS", **options))
    model.save_pretrained(tmp_path / "target")
    (source[1] / "adapter_model.safetensors").unlink()
    for trained in (False, True):
        again = trimtab.PeftModel.from_pretrained(base(*LM), tmp_path / "target", is_trainable=trained)
        task = {"task_ids": torch.tensor([0])}
        assert torch.equal(again.get_prompt(1, **task), model.get_prompt(1, **task))


def test_a_prompt_can_start_as_a_text(tokenizer):
    options = {"prompt_tuning_init_text": "good bad", "tokenizer_name_or_path": tokenizer}
    model = adapted(*LM, "multitask", prompt_tuning_init="TEXT", **options)
    words = model.get_base_model().get_input_embeddings().weight
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, words[[4, 6, 4, 6]])


@pytest.mark.parametrize(("arch", "task"), [LM, ("t5", "SEQ_2_SEQ_LM")])
def test_beams_are_of_their_rows_task(arch, task):
    model = moved(adapted(arch, task, "multitask"), by=3)
    inputs = {k: v for k, v in batch(arch, task, method="multitask").items() if k in ("input_ids", "task_ids")}
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 3}
    both = model.generate(**inputs, **greedy)
    for row in range(2):
        alone = model.generate(**{k: v[row : row + 1] for k, v in inputs.items()}, **greedy)
        assert both[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "`task_ids`, one task for each row of the batch, must be in the model's call"),
        ({"task_ids": torch.tensor([0, 3])}, r"`task_ids`=\[0, 3\]: the adapter knows the tasks 0 to 2"),
        ({"task_ids": torch.tensor([-1, 0])}, r"`task_ids`=\[-1, 0\]: the adapter knows"),
        ({"task_ids": torch.tensor([0, 1, 2])}, "`task_ids` has 3 tasks for a batch of 2 rows"),
    ],
)
def test_a_call_says_the_tasks(tasks, message):
    model, ids = adapted(*LM, "multitask"), batch(*LM)["input_ids"]
    with pytest.raises(trimtab.AdapterError, match=message):
        model(ids, **tasks)
    with pytest.raises(trimtab.AdapterError, match=message):
        model.generate(ids, **tasks)


def test_what_cannot_be(source, tmp_path):
    _, folder = source
    adapted(*LM, "prompt").save_pretrained(tmp_path / "other")
    exact = {"prompt_tuning_init": "EXACT_SOURCE_TASK", "num_tasks": 1}
    wrong = {
        "`num_ranks`=0 must be at least 1; `num_tasks`=0 must be at least 1": {"num_ranks": 0, "num_tasks": 0},
        "`prompt_tuning_init`='SAMPLE_VOCAB' is unknown; choose one of": {"prompt_tuning_init": "SAMPLE_VOCAB"},
        "state_dict_path` must be given for EXACT_SOURCE_TASK": exact,
        "`prompt_tuning_init_task`=-1 must be at least 0": {"prompt_tuning_init_task": -1},
        "`num_tasks`=2 must be 1: source tasks start": {"num_tasks": 2},
        "`prompt_tuning_init_task`=3, and .* holds the tasks 0 to 2": {"prompt_tuning_init_task": 3},
        r"does not fit .*prefix_task_cols is \(1, 4, 2\), not \(1, 4, 5\); prefix_task_rows is": {"num_ranks": 5},
        "holds no 'prefix_task_cols', 'prefix_task_rows'": {"prompt_tuning_init_state_dict_path": tmp_path / "other"},
    }
    for message, options in wrong.items():
        given = {} if options is exact or "choose" in message else {"prompt_tuning_init_state_dict_path": folder}
        with pytest.raises(trimtab.ConfigError, match=message):
            adapted(*LM, "multitask", **exact | given | options)
    torch.save({}, tmp_path / "source.bin")
    with pytest.raises(trimtab.AdapterFileError, match=r"source\.bin is no readable safetensors file"):
        adapted(*LM, "multitask", **exact, prompt_tuning_init_state_dict_path=str(tmp_path / "source.bin"))

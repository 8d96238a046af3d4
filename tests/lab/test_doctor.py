"""`trimtab doctor`: each planted fault is found, and of a sound experiment nothing is claimed."""

import copy
import io
import json
import random
import time

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import trimtab
from trimtab.lab.check import load_experiment
from trimtab.lab.commands import app
from trimtab.lab.data import prepare
from trimtab.lab.doctor import Diagnosis, examine, memory, probe, reload, show
from trimtab.lab.doctor.gauge import Gauge, Machine
from trimtab.lab.doctor.memory import foresee
from trimtab.lab.doctor.pace import pace
from trimtab.lab.doctor.rates import look_at_rate, usual
from trimtab.lab.doctor.simulate import Amount, Memory, simulate
from trimtab.lab.doctor.steps import Stepper
from trimtab.lab.doctor.tokens import look_at_tokens
from trimtab.lab.folders import RunFolder
from trimtab.lab.methods import all_methods
from trimtab.lab.plan import runs
from trimtab.lab.tasks.text_classification import TextClassification
from trimtab.lab.training import Train

LORA = "- lora: {r: 4, target_modules: [query, value], train: {learning_rate: 2.0e-3}}"


def claims(diagnosis, topic=None):
    """What a diagnosis warns of, or calls an error."""
    return [f"{f.level}: {f.found}" for f in diagnosis.findings if f.level != "info" and topic in (None, f.topic)]


@pytest.fixture
def examined(experiment):
    """Examines the first method of an experiment in this process: `examined(LORA)`."""

    def look(methods: str, **task) -> Diagnosis:
        asked = load_experiment(experiment(methods))
        prepared = prepare(asked.data, asked.task)
        settings = asked.settings(runs(asked.methods[0])[0].method, prepared.hash)
        settings = settings.model_copy(update={"task": settings.task.model_copy(update=task)})
        diagnosis = Diagnosis("it")
        probe.examine(diagnosis, settings, prepared.parts)
        return diagnosis

    return look


def test_of_a_sound_experiment_nothing_is_claimed(experiment, tmp_path):
    """The whole command, each method in its process; the numbers are those of the model."""
    full = "- full: {train: {learning_rate: 5.0e-5}}\n"
    file = experiment(full + LORA.replace("r: 4", "name: adapted, grid: {r: [4, 8]}, seeds: [0, 1]"))
    done = CliRunner().invoke(app, ["doctor", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = {each["title"]: Diagnosis.from_json(each) for each in json.loads(done.stdout)}
    assert list(found) == ["full", "adapted"]
    for diagnosis in found.values():
        assert claims(diagnosis) == []
        said = [finding.found for finding in diagnosis.findings]
        assert "each of 140 training examples carries loss with its label" in said
        assert "the outputs are bit-equal" in said
        assert 100e6 < diagnosis.memory["resting"] < diagnosis.memory["train"] < 2e9
        assert 0 < diagnosis.seconds < 60
        assert diagnosis.sample.pieces[0][0].startswith("[CLS] w")
        assert diagnosis.sample.target in ("high", "low")
    trained = 2 * 2 * (16 * 4 + 4 * 16) + 16 * 2 + 2
    assert any(f.found.startswith(f"{trained} of") for f in found["adapted"].findings)
    assert any("for its 4 runs" in f.found for f in found["adapted"].findings)
    assert not list(tmp_path.glob("runs*"))
    said = io.StringIO()
    show(list(found.values()), Console(file=said, width=140))
    assert "0 errors, 0 warnings" in said.getvalue()
    assert said.getvalue().count("bit-equal") == 1  # what holds for all is said once


@pytest.mark.parametrize(
    "methods",
    ["- linear_probe", "- prefix_tuning: {num_virtual_tokens: 3}", "- lora: {quantize: nf4, target_modules: [dense]}"],
)
def test_of_other_sound_methods_neither(examined, methods, monkeypatch):
    monkeypatch.setattr(examine, "PATIENCE", 60)
    assert claims(examined(methods.replace(": {", ": {train: {learning_rate: 1.0e-2}, ", 1))) == []


def test_nothing_is_probed_of_what_is_not_trained(examined):
    assert {finding.topic for finding in examined("- untrained").findings} == {"tokens"}


# tokens


class Answers(TextClassification):
    """A prompt of a text's first words, and an answer of the rest, after `prompt` tokens."""

    prompt: int = 3

    def encode(self, processor, examples, facts):
        rows = []
        for example in examples:
            ids = processor(example["text"])["input_ids"][: self.max_length]
            rows.append({"input_ids": ids, "labels": [-100] * len(ids[: self.prompt]) + ids[self.prompt :]})
        return rows


@pytest.fixture
def reading(tiny_model):
    """Looks at the tokens of texts of so many words: `reading([4, 8], prompt=3)`."""

    def look(words, position_limit=512, **task):
        loaded = TextClassification().load(str(tiny_model), None, {"labels": ["a", "b"]})
        loaded.model.config.max_position_embeddings = position_limit
        draws = random.Random(0)
        examples = [{"text": " ".join(f"w{draws.randrange(40)}" for _ in range(n)), "label": "a"} for n in words]
        diagnosis = Diagnosis("it")
        look_at_tokens(diagnosis, Answers(**task), loaded, examples, {"labels": ["a", "b"]})
        return diagnosis

    return look


def test_the_share_of_tokens_with_loss_and_a_sample_with_its_mask(reading):
    found = reading([4, 8, 18])  # and [CLS], [SEP]
    assert claims(found) == []
    shares = [3 / 6, 7 / 10, 17 / 20]
    assert f"{sum(shares) / 3:.0%} of an example's labels carry loss (50% to 85%)" in [f.found for f in found.findings]
    (prompt, no), (answer, yes) = found.sample.pieces
    assert (no, yes) == (False, True)
    assert prompt.startswith("[CLS] w")
    assert len(prompt.split()) == 3
    assert answer.endswith("[SEP]")
    assert len(answer.split()) == 7
    said = io.StringIO()
    show([found], Console(file=said, width=120, force_terminal=True, color_system="standard"))
    assert answer.startswith(" w")
    assert f"\x1b[1;32m{answer}" in said.getvalue()
    assert f"\x1b[2m{prompt}" in said.getvalue()


def test_truncation_that_cuts_answers(reading):
    assert claims(reading([4, 8, 18], max_length=10)) == [
        "warning: 1 of 3 training examples lose a part of the answer (33.3%; the longest has 20 tokens, 10 are kept)",
        "warning: 1 of 3 training examples lose a part of the text (33.3%; the longest has 20 tokens, 10 are kept)",
    ]
    assert claims(reading([4] * 199 + [18], max_length=10)) == []  # rare: told, not warned of


def test_samples_without_loss(reading):
    assert claims(reading([4, 8, 18], prompt=6)) == ["warning: 1 of 3 training examples carry no loss"]
    assert claims(reading([4, 8, 18], prompt=30)) == [
        "error: nothing can be learned: no token of 3 training examples carries loss"
    ]


def test_more_tokens_than_positions(reading):
    assert claims(reading([40], position_limit=32)) == [
        "error: the longest example has 42 tokens, and the model knows 32 positions"
    ]


def test_truncated_texts_of_a_real_task(examined):
    (claim,) = claims(examined(LORA, max_length=6), "tokens")
    assert "lose a part of the text" in claim


# parameters


def planted(monkeypatch, plant):
    """Lets the probe look at a model with something wrong in it."""
    build = probe.build

    def wrong(settings, facts):
        loaded = build(settings, facts)
        plant(loaded.model)
        return loaded

    monkeypatch.setattr(probe, "build", wrong)


def test_a_graph_that_is_cut(examined, monkeypatch):
    def plant(model):
        model.get_base_model().bert.register_forward_hook(lambda module, given, out: _cut(out))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)

    planted(monkeypatch, plant)
    assert claims(examined(LORA)) == ["error: no trained parameter gets a gradient"]


def _cut(output):
    return type(output)({key: value.detach() for key, value in output.items()})


def test_a_second_adapter_that_is_trained_by_mistake(examined, monkeypatch):
    def plant(model):
        model.add_adapter("second", trimtab.LoraConfig(target_modules=["key"], task_type="SEQ_CLS"))
        model.set_requires_grad("second")

    planted(monkeypatch, plant)
    assert "warning: trained, but not active: adapters 'second'" in claims(examined(LORA), "parameters")


def test_dead_layers_by_name(examined, monkeypatch):
    def plant(model):
        layer = model.get_base_model().bert.encoder.layer[1].attention.self
        layer.query.register_forward_hook(lambda module, given, out: out * 0)

    planted(monkeypatch, plant)
    (claim,) = claims(examined(LORA))
    assert claim.startswith("warning: trained, but their gradient is zero: ")
    assert "layer.1.attention.self.query.lora_A" in claim
    assert "value" not in claim


# memory


def test_a_machine_that_is_too_small(examined, monkeypatch):
    needed = examined(LORA).memory["train"]
    monkeypatch.setattr(Machine, "room", lambda self: needed // 2)
    found = claims(examined(LORA), "memory")
    assert [claim.split(":")[0] for claim in found] == ["error", "error", "warning"]
    assert "training takes about" in found[0]
    monkeypatch.setattr(Machine, "room", lambda self: int(needed * 1.05))
    assert {claim.split(":")[0] for claim in claims(examined(LORA), "memory")} == {"warning"}


class Chain(nn.Module):
    """Layers of one width."""

    def __init__(self, width, depth=1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x, labels=None):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return {"loss": x.sum(), "logits": x}


def test_simulated_sizes_are_those_one_can_count():
    rows, width, depth = 32, 64, 3
    model, batch = Chain(width, depth), {"x": torch.randn(rows, width)}
    before = copy.deepcopy(model.state_dict())
    sizes = simulate(model, Stepper(Train()), batch, batch)
    weights, activation = depth * width * width * 4, rows * width * 4
    # Two moments of Adam and the input (the simulation brings its own); then, in a step, gradients of all weights, or
    # what each layer keeps: its output, which is the next one's input.
    kept = 2 * weights + activation
    assert sizes.evaluate.total == pytest.approx(kept + 2 * activation, rel=0.1)
    assert kept + weights <= sizes.train.total <= kept + weights + (depth + 3) * activation + 4096
    assert sizes.merge is None
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_large_tensors_are_told_from_small_ones():
    with Memory() as seen:
        small, large = torch.empty(1000), torch.empty(10 * 2**20)
        view = large[:5]
        assert seen.now == seen.peak == Amount(4000, 40 * 2**20)
        del large
        assert seen.now.large
        del view
        assert seen.now == Amount(4000, 0)
        del small
    assert seen.now == Amount()
    assert seen.peak.total == 4000 + 40 * 2**20


def test_a_plan_meets_what_is_measured():
    """Planned from a probe a quarter as large; `benchmarks/memory.py` looks closer, at real models."""
    model, stepper = Chain(1024, 8), Stepper(Train())
    batch, probe_batch = ({"x": torch.randn(rows, 1024)} for rows in (4096, 1024))
    planned = foresee(model, stepper, batch, probe_batch, probe_batch)
    machine, optimizer = Machine(), stepper.optimizer(model.train())
    machine.restart()
    for _ in range(2):
        stepper.step(model, optimizer, batch)
    grown = machine.peak() - planned.resting
    assert grown > 150e6
    assert planned.train - planned.resting == pytest.approx(grown, rel=0.35)


class Graphics(Gauge):
    """A GPU that hands out what it is asked for, and keeps 8 MB for its libraries."""

    name = "GPU memory"

    def __init__(self, seen):
        self.seen = seen

    def now(self):
        return 100

    def restart(self):
        pass

    def peak(self):
        return 100 + 8_000_000 + self.seen.total

    def room(self):
        return 10**9


def test_a_gpu_needs_what_its_tensors_need_and_a_workspace(monkeypatch):
    model, stepper, batch = Chain(64, 3), Stepper(Train()), {"x": torch.randn(64, 64)}
    small, large = ({"x": batch["x"][:rows]} for rows in (8, 64))
    sizes = {rows: simulate(model, stepper, given, given).train for rows, given in ((8, small), (64, large))}
    monkeypatch.setattr(memory, "gauge", lambda: Graphics(sizes[8]))
    planned = foresee(model, stepper, large, small, small)
    assert planned.train == 100 + 8_000_000 + sizes[64].total
    assert planned.evaluate == planned.train


# the rest


def test_every_method_has_a_usual_rate_and_starts_within_it(recwarn):
    needed = {"adalora": {"total_step": 10}, "trainable_tokens": {"token_indices": [1]}}
    for kind, method in all_methods().items():
        try:
            asked = method(**needed.get(kind, {}))
        except ValueError:
            continue  # needs more options
        diagnosis = Diagnosis(kind)
        look_at_rate(diagnosis, asked, asked.learning_rate)
        assert claims(diagnosis) == [], kind


def test_rates_of_other_families_are_warned_of():
    methods = all_methods()
    for kind, rate, side in (("lora", 1.0, "higher"), ("full", 2e-3, "higher"), ("prompt_tuning", 1e-6, "lower")):
        diagnosis = Diagnosis(kind)
        look_at_rate(diagnosis, methods[kind](), rate)
        low, high, _ = usual(methods[kind]())
        (claim,) = claims(diagnosis)
        assert claim.startswith(f"warning: {rate:g} is {side} than what is usual for {kind}: {low:g} to {high:g}")


def test_what_is_trained_but_not_saved(examined, monkeypatch):
    """A layer of the base that was unfrozen by hand: its change is not in the adapter's file."""
    planted(monkeypatch, lambda model: model.get_base_model().bert.embeddings.requires_grad_(True))
    (claim,) = claims(examined(LORA))
    assert claim.startswith("error: the loaded model says something else: the largest difference of an output is")


def test_other_outputs_and_other_rounding(examined, monkeypatch):
    outputs = reload._outputs
    calls = []

    def rounded(model, batch):
        calls.append(outputs(model, batch) * (1 + 1e-6 * len(calls)))
        return calls[-1]

    monkeypatch.setattr(reload, "_outputs", rounded)
    found = examined(LORA)
    assert claims(found) == []
    assert any("the largest difference of an output is" in finding.found for finding in found.findings)


class Clockwork(Stepper):
    """A step takes 20 ms and half a millisecond a token; a look takes a tenth of a millisecond a token."""

    def optimizer(self, model):
        return None

    def step(self, model, optimizer, batch):
        time.sleep(0.02 + 0.0005 * batch["tokens"])

    def evaluate(self, model, batch):
        time.sleep(0.0001 * batch["tokens"])


@pytest.mark.parametrize(("max_steps", "share"), [(None, 3), (5, 0.5)])
def test_the_duration_is_that_of_all_steps_and_looks(max_steps, share):
    rows = {"train": [{"input_ids": [0] * 10}] * 80, "validation": [{"input_ids": [0] * 10}] * 20, "test": []}
    train = Train(epochs=3, batch_size=8, max_steps=max_steps)
    diagnosis = Diagnosis("it")
    pace(diagnosis, train, Clockwork(train), nn.Identity(), rows, lambda part: {"tokens": 10 * len(part)})
    looks = 3 if max_steps is None else 1
    expected = share * (10 * 0.02 + 800 * 0.0005) + looks * 200 * 0.0001
    assert diagnosis.seconds == pytest.approx(expected, rel=0.2)


def test_a_process_that_dies_hangs_or_fails_is_a_finding(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    assert claims(examine.probe(folder, "it", patience=0.01)) == ["warning: a few steps took more than 0.01 seconds"]
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(examine.sys, "executable", str(killer))
    assert claims(examine.probe(folder, "it")) == ["error: its process ended with status -9: it said nothing"]


def test_an_error_ends_the_command_with_status_1(experiment):
    done = CliRunner().invoke(app, ["doctor", str(experiment("- lora: {target_modules: [none_such]}"))])
    assert done.exit_code == 1
    assert "NoMatchingPeftModuleError: Target modules ['none_such'] not found" in done.output
    assert "1 error, 0 warnings" in done.output

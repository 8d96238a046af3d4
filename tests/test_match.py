"""Which modules a configuration means, and which rows an adapter: properties of any names, found by hypothesis."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests import models
from torch import nn

import trimtab
from trimtab import LoraConfig, get_peft_model
from trimtab.match import ends_with, hits, in_layers, shortest, walk

PARTS = st.sampled_from(["a", "b", "ab", "q_proj", "proj", "0", "1", "10", "layers"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True)
quick = settings(max_examples=80, deadline=None)


@quick
@given(NAMES, st.data())
def test_shortest_endings_mean_what_they_should_and_nothing_else(names, data):
    inside = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    outside = [n for n in names if n not in inside]
    # A name that is the ending of one outside cannot be told apart from it by endings.
    assume(not any(ends_with(o, inside) for o in outside))
    endings = shortest(inside, outside)
    assert {n for n in names if ends_with(n, endings)} == set(inside)
    assert len(endings) <= len(inside)
    for ending in endings:  # and none could lose its first part
        shorter = ending.partition(".")[2]
        assert not shorter or any(ends_with(o, [shorter]) for o in outside)


@quick
@given(NAMES, st.data())
def test_a_list_means_endings_and_a_string_a_whole_path(names, data):
    wanted = data.draw(st.lists(PARTS, min_size=1, max_size=3))
    for name in names:
        assert hits(name, wanted) == any(("." + name).endswith("." + w) for w in wanted)
        pattern = "|".join(rf"(.*\.)?{re.escape(w)}" for w in wanted)
        assert hits(name, pattern) == hits(name, wanted)
        assert hits(name, re.escape(name))
        assert not hits(name, re.escape(name) + "x")
        assert not hits(name, None)


@quick
@given(st.integers(0, 12), st.sets(st.integers(0, 12)), st.sampled_from([None, "layers", ["h", "layers"]]))
def test_layer_indices(index, wanted, pattern):
    config = LoraConfig(target_modules=["q"], layers_to_transform=sorted(wanted), layers_pattern=pattern)
    expected = index in wanted
    assert in_layers(f"model.layers.{index}.attn.q", config) == expected
    assert in_layers(f"model.layers.{index}.attn.9.q", config) == expected  # the first index counts
    assert not in_layers("model.head.q", config)
    assert in_layers("model.head.q", LoraConfig(target_modules=["q"]))


@quick
@given(st.dictionaries(PARTS, st.integers(1, 64), max_size=4), NAMES)
def test_patterns_are_resolved_once_for_a_module(ranks, names):
    config = LoraConfig(r=100, rank_pattern=ranks, alpha_pattern={k: v + 0.5 for k, v in ranks.items()})
    for name in names:
        meant = [k for k in ranks if ends_with(name, [k])]
        here = config.at(name)
        assert here.r == (ranks[meant[0]] if meant else 100)  # the first that means it, in the order given
        assert here.lora_alpha == (ranks[meant[0]] + 0.5 if meant else 8)
        assert (config.r, config.lora_alpha) == (100, 8)


@pytest.mark.parametrize(
    ("pattern", "path", "meant"),
    [
        ("lin0", "lin0", True), ("lin0", "a.lin0", True), ("lin0", "a.xlin0", False), ("lin0", "lin0.a", False),
        (r"a\.\d+\.q", "m.a.3.q", True), (r"a\.\d+\.q", "m.aa.3.q", False), ("^q", "q", True), ("q|k", "m.k", True),
    ],
)  # fmt: skip
def test_pattern_keys_are_expressions_for_endings(pattern, path, meant):
    assert LoraConfig(r=8, rank_pattern={pattern: 3}).at(path).r == (3 if meant else 8)


@st.composite
def trees(draw, depth=3):
    module = nn.Module()
    for key in draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3)):
        leaf = depth == 0 or draw(st.booleans())
        module.add_module(key, nn.Linear(2, 2) if leaf else draw(trees(depth - 1)))
    return module


@quick
@given(trees())
def test_walk_finds_the_base_model_whatever_stands_in_it(model):
    before = [p.name for p in walk(model)]
    assert before == [n for n, _ in model.named_modules()][1:]
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assume(linear)
    for adapter, targets in (("one", linear[:1]), ("other", linear)):
        paths = "|".join(re.escape(n) for n in targets)
        trimtab.inject_adapter_in_model(LoraConfig(r=1, target_modules=paths), model, adapter)
    assert [p.name for p in walk(model)] == before
    assert all(p.parent._modules[p.key] is p.module for p in walk(model))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["default", "other", "__base__"]), min_size=1, max_size=6))
def test_any_mixture_of_rows(names):
    model = mixture()
    x = torch.randn(len(names), 12)
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = model(x)
    with model.disable_adapter():
        alone["__base__"] = model(x)
    found = model(x, adapter_names=names)
    for i, name in enumerate(names):
        torch.testing.assert_close(found[i], alone[name][i])


def mixture():
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)), LoraConfig(r=2, target_modules=["0"])
    )
    model.add_adapter("other", LoraConfig(r=3, target_modules=["0", "2"]))
    model.set_requires_grad(["default", "other"])
    return models.shake(model).eval()


def test_a_batch_that_the_model_repeats():
    """Beams: every row of the batch stands there k times in a row."""
    model, x = mixture(), torch.randn(2, 12)
    found = model(x.repeat_interleave(3, 0), adapter_names=["other", "default"])
    once = model(x, adapter_names=["other", "default"])
    torch.testing.assert_close(found, once.repeat_interleave(3, 0))


@settings(max_examples=15, deadline=None)
@given(st.permutations(["default", "other", "third"]), st.integers(1, 3))
def test_active_adapters_add_up_in_any_order(order, count):
    model = mixture()
    model.add_adapter("third", LoraConfig(r=1, target_modules=["2"]))
    model.set_requires_grad("third")
    models.shake(model, 9, only="third")
    x = torch.randn(3, 12)
    model.base_model.set_adapter(order[:count])
    y = model(x)
    assert model.active_adapters == order[:count]
    model.merge_adapter()
    torch.testing.assert_close(model(x), y)
    model.unmerge_adapter()
    model.base_model.set_adapter(sorted(order[:count]))
    torch.testing.assert_close(model(x), y)  # LoRA adds: the order does not matter

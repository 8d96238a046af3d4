"""Every error of the core's public face: its class, and a message that says what was asked, found and to be done."""

import dataclasses
import json
import warnings

import pytest
import torch
from tests import models
from tests.behaviours import same_state, state
from tests.table import FIRST
from torch import nn

import trimtab
from trimtab import CONFIGS, AdapterError, ConfigError, LoraConfig, MergeError, TargetError, get_peft_model
from trimtab import AdapterFileError as FileError
from trimtab import NoMatchingPeftModuleError as NoMatch

IA3Config, LoHaConfig, LoKrConfig, VeraConfig = (CONFIGS[k] for k in ("IA3", "LOHA", "LOKR", "VERA"))


# configurations that contradict themselves: class, options, message
CONFIGURATIONS = [
    (LoraConfig, {"r": 0}, "LoraConfig: `r`=0 must be at least 1"),
    (LoraConfig, {"lora_dropout": 1.0}, r"`lora_dropout`=1.0 must be in \[0, 1\)"),
    (LoraConfig, {"r": -1, "lora_dropout": 2}, "`r`=-1 must be at least 1; `lora_dropout`=2 must"),
    (LoraConfig, {"init_lora_weights": "pisa"}, "'pisa' is unknown; choose True, False or 'gaussian', 'corda', 'eva'"),
    (LoraConfig, {"lora_bias": True, "use_dora": True}, "`lora_bias` cannot be combined with `use_dora`"),
    (LoraConfig, {"bias": "some"}, "`bias`='some' is unknown; choose one of 'none', 'all', 'lora_only'"),
    (LoraConfig, {"task_type": "CHAT"}, "`task_type`='CHAT' is unknown; choose one of 'SEQ_CLS', .*'CAUSAL_LM'"),
    (LoraConfig, {"target_modules": "(q"}, r"`target_modules`='\(q' is not a regular expression: missing"),
    (LoraConfig, {"exclude_modules": "*"}, r"`exclude_modules`='\*' is not a regular expression: nothing to repeat"),
    (LoraConfig, {"target_modules": "q.*", "layers_to_transform": 1}, "`layers_to_transform` needs .* as a list"),
    (LoraConfig, {"layers_pattern": "h"}, "`layers_pattern` needs `layers_to_transform`"),
    (IA3Config, {"feedforward_modules": "(q"}, "`feedforward_modules`=.* is not a regular expression"),
    (IA3Config, {"feedforward_modules": ["a"], "target_modules": ["b"]}, "should be a subset of `target_modules`"),
    (LoHaConfig, {"r": 0}, "LoHaConfig: `r`=0 must be at least 1"),
    (LoHaConfig, {"rank_dropout": 1}, r"`rank_dropout`=1 must be in \[0, 1\)"),
    (LoKrConfig, {"module_dropout": -1}, r"`module_dropout`=-1 must be in \[0, 1\)"),
    (LoKrConfig, {"decompose_factor": 0}, "`decompose_factor`=0 must be at least 1, or -1 for no limit"),
    (LoKrConfig, {"init_weights": "x"}, "`init_weights`='x' is unknown; choose True, False or 'lycoris'"),
    (VeraConfig, {"r": 0}, "`r`=0 must be at least 1"),
    (VeraConfig, {"vera_dropout": 7}, r"`vera_dropout`=7 must be in \[0, 1\)"),
    (VeraConfig, {"bias": "lora_only"}, "choose one of 'none', 'all', 'vera_only'"),
]


@pytest.mark.parametrize(("kind", "options", "message"), CONFIGURATIONS, ids=lambda v: str(v)[:40])
def test_configuration(kind, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, trimtab.TrimtabError)


# values of options that are not offered, however the configuration comes about
NOT_OFFERED = {
    "megatron_config": ({"x": 1}, {}, "`megatron_config`={'x': 1} is not available in Trimtab .*; leave it at its"),
    "eva_config": ({"rho": 0.5}, {"init_lora_weights": "eva"}, "`eva_config`: `rho`=0.5 must be at least 1"),
    "corda_config": ({"corda_method": "x"}, {"init_lora_weights": "corda"}, "`corda_config`: `corda_method`='x' is"),
    "loftq_config": ({"loftq_bits": 2}, {"init_lora_weights": "loftq"}, "`loftq_bits`=2 must be one of 4, 8"),
    "lora_ga_config": ({"scale": "x"}, {"init_lora_weights": "lora_ga"}, "`lora_ga_config`: `scale`='x' is unknown"),
    "arrow_config": ({"top_k": 2}, {}, "`arrow_config`: `top_k`=2 must be between 1 and the number of adapters, 0"),
    "velora_config": ({"x": 1}, {}, "`velora_config` has no 'x'; there are 'num_groups', 'scale', 'init_type'"),
    "kasa_config": ({"beta": -1}, {}, "`kasa_config`: `beta`=-1 must not be negative"),
    "monteclora_config": ("yes", {}, "`monteclora_config`='yes' must be a MontecloraConfig, or a dict of its fields"),
    "use_bdlora": ({"nblocks": 0}, {}, "`use_bdlora`: `nblocks`=0 must be at least 1"),
    "qalora_group_size": (5, {"use_qalora": True}, "`qalora_group_size`=5 must divide the 12 inputs"),
    "alora_invocation_tokens": ([1], {"init_lora_weights": "pissa"}, "'pissa' changes the base, invoked or not"),
    "ensure_weight_tying": (True, {"use_dora": True}, "`ensure_weight_tying`: Dora has no 'm' for the transposed"),
}  # fmt: skip


@pytest.mark.parametrize("option", NOT_OFFERED)
@pytest.mark.parametrize("way", ["written", "read"])
def test_a_value_that_is_not_offered(option, way, tmp_path):
    value, others, message = NOT_OFFERED[option]
    base, target = ("gpt2", "wte") if option == "ensure_weight_tying" else ("zoo", "lin0")
    options = {"target_modules": [target], option: value} | others
    values = LoraConfig().to_dict() | options
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    make = {"written": lambda: LoraConfig(**options), "read": lambda: trimtab.PeftConfig.from_pretrained(tmp_path)}
    with pytest.raises(ConfigError, match=message):
        get_peft_model(models.base(base), make[way]())


# models that cannot take a configuration: model, configuration, class, message
def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["lin0"]} | options)


class Odd(nn.Module):
    """Layers that carry no adapter."""

    def __init__(self):
        super().__init__()
        self.norm, self.lin = nn.LayerNorm(4), nn.Linear(4, 4)
        self.lin8 = nn.Linear(4, 4).requires_grad_(False)
        self.lin8.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
        self.kv = nn.MultiheadAttention(4, 1, kdim=3)


IMPOSSIBLE = [
    ("zoo", lambda: lora(target_modules=["lin3"]), NoMatch,
     r"\['lin3'\] not found in the base model. Nearest: .*'lin0'"),
    ("zoo", lambda: lora(target_modules=["zzz"]), NoMatch, "not found in the base model. It has 'c1', 'conv1'"),
    ("zoo", lambda: lora(target_modules="zz.*"), NoMatch, r"'zz.\*' not found"),
    ("zoo", lambda: lora(exclude_modules=["lin0"]), NoMatch, r"means 'lin0', but `exclude_modules`=\['lin0'\] .*none"),
    ("zoo", lambda: lora(layers_to_transform=[3]), NoMatch, r"`layers_to_transform`=\[3\] leave none of them"),
    ("zoo", lambda: lora(target_parameters=["experts.down"]), NoMatch,
     "no parameter is called 'experts.down'. It has 'bias'"),
    ("zoo", lambda: lora(target_parameters=["conv2.weight"]), TargetError, "only 2 or 3 dimensions can be adapted"),
    ("zoo", lambda: lora(target_modules=None), ConfigError, 'no default for architecture None; name .*"all-linear"'),
    ("vit", lambda: LoraConfig(), ConfigError, "LORA has no default for architecture 'vit'"),
    ("zoo", lambda: lora(target_modules=[]), ConfigError, "LoraConfig adapts nothing: no targets, tokens or modules"),
    ("zoo", lambda: lora(target_modules=["mha.out_proj"]), TargetError, "no effect on its own; target the attention"),
    ("zoo", lambda: lora(modules_to_save=["hed"]), TargetError,
     "`modules_to_save`: no module is called 'hed'. Nearest: 'head'"),
    ("zoo", lambda: lora(trainable_token_indices=[1]), TargetError,
     r"as a list needs a model .* give \{name: indices\}"),
    ("zoo", lambda: lora(trainable_token_indices={"em": [1]}), TargetError, "no module is called 'em'. Nearest: 'emb'"),
    ("zoo", lambda: lora(trainable_token_indices={"emb": [1, 30]}), ConfigError, "names rows 30; the layer has 30"),
    ("zoo", lambda: lora(trainable_token_indices={"conv1": [1]}), ConfigError,
     "an embedding or a linear layer, not a conv"),
    ("zoo", lambda: lora(trainable_token_indices={"lin0": [1]}), TargetError, "'lin0' is both a target .*; choose one"),
    ("zoo", lambda: lora(lora_bias=True, target_modules=["emb"]), ConfigError, "`lora_bias` needs a layer with a bias"),
    ("zoo", lambda: lora(lora_bias=True, target_modules=["mha"]), ConfigError, "a attention layer has none"),
    ("zoo", lambda: lora(r=3, init_lora_weights="orthogonal"), ConfigError, "`r`=3 must be even: half of Q"),
    ("zoo", lambda: lora(init_lora_weights="pissa_niter_x"), ConfigError, "'x' is not a number of iterations"),
    ("zoo", lambda: lora(init_lora_weights="pissa", target_modules=["gconv"]), ConfigError,
     "no single matrix to split"),
    ("zoo", lambda: lora(init_lora_weights="orthogonal", target_modules=["gconv"]), ConfigError,
     "no product B A in common"),
    ("zoo", lambda: lora(layer_replication=[[0, 1]]), ConfigError,
     "needs a model with one list of layers; this one has none"),
    ("llama", lambda: LoraConfig(layer_replication=[[0, 3]]), ConfigError,
     r"\[0, 3\] are not ranges in a list of 2 layers"),
    ("zoo", lambda: IA3Config(target_modules=["lin0"]), ConfigError,
     "`feedforward_modules` is unset, and IA3 has no default"),
    (Odd, lambda: lora(target_modules=["norm"]), TargetError,
     "1 of 1 targets .*norm: the weight of a norm layer is a vector, and LORA adapts matrices"),
    (lambda: nn.Sequential(nn.Tanh()), lambda: lora(target_modules=["0"]), TargetError,
     "1 of 1 targets .*0: a Tanh carries no adapter; layers that do: 'Conv1D'"),
    (Odd, lambda: lora(target_modules=["lin8"]), TargetError,
     "stored as torch.int8 is quantised in a way that no codec"),
    (Odd, lambda: lora(target_modules=["kv"]), TargetError, "its own `kdim` or `vdim` has no joint input projection"),
    (Odd, lambda: lora(target_modules=["norm", "lin", "lin8"]), TargetError,
     "2 of 3 targets cannot take LORA: .*lin8: .*; norm: "),
    (nn.Sequential, lambda: lora(target_modules="all-linear"), NoMatch, "no linear layer besides its head"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "config", "kind", "message"), IMPOSSIBLE, ids=[m[:45] for *_, m in IMPOSSIBLE])
def test_nothing_is_changed_when_a_model_cannot_take_it(model, config, kind, message):
    base = models.base(model) if isinstance(model, str) else model()
    before, modules = state(base), [(n, type(m)) for n, m in base.named_modules()]
    flags = [p.requires_grad for p in base.parameters()]
    with pytest.raises(kind, match=message):
        get_peft_model(base, config())
    same_state(base, before)
    assert [(n, type(m)) for n, m in base.named_modules()] == modules
    assert [p.requires_grad for p in base.parameters()] == flags


# what cannot be done with a model that has adapters
def zoo(**options):
    model = models.shake(get_peft_model(models.base("zoo"), lora(**options)))
    model.add_adapter("other", lora(target_modules=["c1"]))
    return model


def merged(act, keep_base=True):
    def run(model):
        model.merge_adapter(keep_base=keep_base)
        act(model)

    return run


IDS = models.inputs("zoo")["ids"]
STATEMENTS = {
    "taken": (lambda m: m.add_adapter("other", lora()), AdapterError, "already has an adapter 'other'; choose another"),
    "dot": (lambda m: m.add_adapter("a.b", lora()), AdapterError, "cannot be called 'a.b': names are not empty"),
    "attribute": (lambda m: m.add_adapter("half", lora()), AdapterError, "'half': .* attribute of torch"),
    "base": (lambda m: m.add_adapter("__base__", lora()), AdapterError, "cannot be called '__base__'"),
    "method": (lambda m: m.add_adapter("x", VeraConfig(target_modules=["lin0"])), AdapterError, "mixed=True"),
    "prompt": (lambda m: m.add_adapter("x", CONFIGS["PROMPT_TUNING"](num_virtual_tokens=2)), AdapterError,
               "prompt adapters and weight adapters cannot"),
    "unknown": (lambda m: m.set_adapter("x"), AdapterError, "no adapter is called 'x'; there are 'default', 'other'"),
    "two unknown": (lambda m: m.base_model.set_adapter(["x", "other", "y"]), AdapterError, "called 'x', 'y'"),
    "delete": (lambda m: m.delete_adapter("x"), AdapterError, "no adapter is called 'x'; there are 'default'"),
    "merge unknown": (lambda m: m.merge_adapter(["x"]), AdapterError, "no adapter is called 'x'"),
    "gradients": (lambda m: m.set_requires_grad("x"), AdapterError, "no adapter is called 'x'"),
    "rows": (lambda m: m(IDS, adapter_names=["x"] * 4), AdapterError, "`adapter_names`: no adapter is called 'x'"),
    "row count": (lambda m: m(IDS, adapter_names=["default"] * 3), AdapterError,
     "3 names for a batch of 4 rows at 'lin0'"),
    "rows, merged": (merged(lambda m: m(IDS, adapter_names=["default"] * 4)), AdapterError,
     "'default' is merged; unmerge"),
    "add, merged": (merged(lambda m: m.add_adapter("x", lora())), AdapterError,
     "'x' cannot be added while 'default' is"),
    "delete, merged": (merged(lambda m: m.delete_adapter("default")), MergeError, "unmerge it before deleting it"),
    "no base": (merged(lambda m: m.unmerge_adapter(), False), MergeError, "load the base model again"),
    "no base, unload": (merged(lambda m: m.unload(), False), MergeError, "load the base model again"),
    "save": (lambda m: m.save_pretrained("x", selected_adapters=["x"]), AdapterError,
     "`selected_adapters`: no adapter"),
    "pickle": (lambda m: m.save_pretrained("x", safe_serialization=False), ConfigError,
     "pickled weights.*leave it True"),
    "file": (lambda m: m.save_pretrained(__file__), FileError, "test_errors.py is a file; a folder is needed"),
    "again": (lambda m: get_peft_model(m, lora()), AdapterError, r"has adapters already; use model.add_adapter\("),
    "state": (lambda m: trimtab.get_peft_model_state_dict(m, adapter_name="x"), AdapterError,
     "no adapter is called 'x'"),
    "restack": (lambda m: m.add_adapter("x", lora(layer_replication=[[0, 1]])), ConfigError, "would restack layers"),
    "in full": (lambda m: m.add_adapter("x", lora(modules_to_save=["lin0"])), TargetError, "an adapter stands there"),
    "token rows": (lambda m: m.add_adapter("x", lora(trainable_token_indices={"c1": [1]})), TargetError, "choose one"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.filterwarnings("ignore")
def test_statement(name):
    act, kind, message = STATEMENTS[name]
    model = zoo()
    before = state(model)
    with pytest.raises(kind, match=message):
        act(model)
    if "no base" not in name:
        model.unmerge_adapter()
        same_state(model, before)
    assert list(model.peft_config) == ["default", "other"]
    assert model.active_adapters == ["default"]


def test_disable_without_a_base():
    model = zoo()
    model.merge_adapter(keep_base=False)
    y = models.output(model, {"ids": IDS})
    message = "was merged without keeping its base; its adapters cannot be disabled"
    with pytest.raises(MergeError, match=message), model.disable_adapter():
        pass
    assert torch.equal(models.output(model, {"ids": IDS}), y)
    assert all(layer.enabled for layer in model.base_model.layers)


def test_two_heads_at_once():
    model = get_peft_model(models.base("zoo"), lora(modules_to_save=["head"]))
    model.add_adapter("other", lora(modules_to_save=["head"]))
    with pytest.raises(AdapterError, match="'head' is trained in full by 'default', 'other'; only one"):
        model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default"]
    before = state(model)
    with pytest.raises(AdapterError, match="only one"):
        model.merge_and_unload(adapter_names=["default", "other"])
    same_state(model, before)
    with pytest.raises(TargetError, match="is trained in full"):
        model.add_adapter("x", lora(target_modules=["head"]))


def test_rows_inside_an_attention():
    model = zoo(target_modules=["mha"])
    with pytest.raises(AdapterError, match="rows of 'mha' cannot be told apart in a attention layer"):
        model(IDS, adapter_names=["default"] * 4)
    assert model.base_model.layers[0].router.rows is None  # it did not stay behind


MERGES = {
    "grouped": (lora(target_modules=["gconv"]),
     r"the merged weight has shape \(8, 8, 3, 3\), the layer's is \(8, 4, 3, 3\)"),
    "no bias": (lora(target_modules=["lin1"], lora_bias=True),
     "lin1: merging 'default' gives a bias, and the layer has none to hold it"),
    "grouped and more": (lora(target_modules=["lin0", "gconv"]), "cannot be merged, nothing was changed: gconv"),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_merges_that_are_refused(name, how):
    config, message = MERGES[name]
    config = LoraConfig(**{k: getattr(config, k) for k in ("r", "target_modules", "lora_bias")})
    model = models.shake(get_peft_model(models.base("zoo"), config))
    before, y = state(model), models.output(model, {"ids": IDS})
    with pytest.raises(MergeError, match=message):
        getattr(model, how)()
    same_state(model, before)
    assert torch.equal(models.output(model, {"ids": IDS}), y)


# functions
FUNCTIONS = {
    "no configuration": (lambda: get_peft_model(nn.Linear(2, 2), {"r": 2}), ConfigError,
     "such as LoraConfig, not a dict"),
    "revision": (lambda: get_peft_model(models.base("zoo"), lora(revision="a"), revision="b"), ConfigError, "says 'a'"),
    "inject": (lambda: trimtab.inject_adapter_in_model(CONFIGS["PROMPT_TUNING"](num_virtual_tokens=2), nn.Linear(2, 2)),
               ConfigError, "cannot be injected: prompts act around a model; use get_peft_model"),
    "type": (lambda: trimtab.get_peft_config({"peft_type": "X"}), ConfigError,
     "`peft_type`='X' is not offered; .*'LORA'"),
    "from_dict": (lambda: trimtab.PeftConfig.from_dict({"peft_type": "OFT9"}), ConfigError, "it offers .*'LORA'"),
    "bare": (lambda: trimtab.get_peft_model_state_dict(nn.Linear(2, 2)), AdapterError, "'default'; there are none"),
    "status": (lambda: trimtab.get_layer_status(nn.Linear(2, 2)), AdapterError,
     "no adapter layers; was an adapter put in"),
    "explain": (lambda: trimtab.explain(nn.Linear(2, 2)), AdapterError, "no adapter layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    act, kind, message = FUNCTIONS[name]
    with pytest.raises(kind, match=message):
        act()


# configuration files
def test_unknown_keys_are_left_out_with_a_warning(tmp_path):
    values = lora().to_dict() | {"lora_alfa": 3, "from_the_future": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.warns(
        trimtab.TrimtabWarning, match=r"'from_the_future', 'lora_alfa' \(like 'lora_alpha'\?\); left out"
    ) as seen:
        config = trimtab.PeftConfig.from_pretrained(tmp_path)
    assert type(config) is LoraConfig
    assert len(seen) == 1
    assert seen[0].filename == __file__


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON: "), ("[1]", "holds a list, not an object")])
def test_a_configuration_file_that_is_none(tmp_path, text, message):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(FileError, match=f"adapter_config.json {message}"):
        trimtab.PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [k for k in CONFIGS if k in trimtab.METHODS])
def test_configuration_round_trip(kind, tmp_path):
    made = FIRST[kind].config()
    made.task_type = "CAUSAL_LM"
    if named := "target_modules" in {f.name for f in dataclasses.fields(made)}:
        names = ["a"] if kind == "ADAPTION_PROMPT" else ["a", "b"]  # which takes one
        made.target_modules = set(names)
        made.__post_init__()
    made.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = trimtab.PeftConfig.from_pretrained(tmp_path)
    assert again == made
    assert type(again) is type(made)
    assert not named or again.target_modules == names
    assert trimtab.PeftConfig.from_pretrained(tmp_path, inference_mode=True).inference_mode


def test_auto_classes_say_what_is_missing(tmp_path):
    get_peft_model(models.base("zoo"), lora()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="`base_model_name_or_path` is unset; load the base and use PeftModel"):
        trimtab.AutoPeftModel.from_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    values |= {"base_model_name_or_path": "x", "auto_mapping": None, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="does not say its base's class; use the AutoPeftModel of its task"):
        trimtab.AutoPeftModel.from_pretrained(tmp_path)


# warnings
def test_a_target_that_means_nothing_beside_one_that_does():
    with pytest.warns(trimtab.TrimtabWarning, match="nothing is called 'lin7'. Nearest: 'lin0', 'lin1'"):
        get_peft_model(models.base("zoo"), lora(target_modules=["lin0", "lin7"]))


def test_switching_while_merged():
    model = zoo()
    model.merge_adapter()
    with pytest.warns(trimtab.TrimtabWarning, match="cannot be switched while merged: unmerged first"):
        model.set_adapter("other")
    assert not model.base_model.merged_adapters


def test_a_name_given_twice_counts_once():
    model, names = zoo(), ["default", "default"]
    y = models.output(model, {"ids": IDS})
    model.base_model.set_adapter(names)
    assert model.active_adapters == ["default"]
    model.merge_adapter(names)
    torch.testing.assert_close(models.output(model, {"ids": IDS}), y)

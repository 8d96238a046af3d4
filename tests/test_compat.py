"""The low-level face: what other people's code imports, asks with isinstance, reads of a layer and calls on it."""

import dataclasses
import inspect
import types

import pytest
import torch
from torch import nn

import trimtab
from trimtab import get_peft_model, tuners, utils
from trimtab.compat import functional, helpers
from trimtab.method import METHODS as REGISTERED
from trimtab.tuners import tuners_utils
from trimtab.utils import other


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.linear = nn.Linear(6, 5)
        self.conv = nn.Conv2d(3, 4, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.expert = nn.Module()
        self.expert.weight = nn.Parameter(torch.randn(3, 4))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.linear(self.words(x)))


def lora(**options):
    kept = {"target_modules": ["words", "linear", "conv"], "init_lora_weights": False, "r": 2, "lora_alpha": 6}
    return trimtab.LoraConfig(**kept | options)


@pytest.fixture
def model():
    return get_peft_model(Net(), lora(modules_to_save=["head"]))


# isinstance
METHODS = {
    "lora": (trimtab.LoraConfig, "LoraLayer", "LoraModel"),
    "ia3": (trimtab.IA3Config, "IA3Layer", "IA3Model"),
    "loha": (trimtab.LoHaConfig, "LoHaLayer", "LoHaModel"),
    "lokr": (trimtab.LoKrConfig, "LoKrLayer", "LoKrModel"),
    "vera": (trimtab.VeraConfig, "VeraLayer", "VeraModel"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_and_a_tuner_are_what_their_adapters_make_them(method):
    config, layer_face, _tuner_face = METHODS[method]
    extra = {"feedforward_modules": []} if method == "ia3" else {}
    made = get_peft_model(Net(), config(target_modules=["linear"], **extra))
    layer = made.base_model.model.linear
    assert isinstance(layer, tuners_utils.BaseTunerLayer)
    assert isinstance(layer, nn.Module)
    assert isinstance(made.base_model, tuners_utils.BaseTuner)
    for name, (_, layer_name, tuner_name) in METHODS.items():
        package = getattr(tuners, name)
        assert isinstance(layer, getattr(package, layer_name)) == (name == method)
        assert isinstance(layer, package.Linear) == (name == method)
        assert isinstance(made.base_model, getattr(package, tuner_name)) == (name == method)
    assert isinstance(layer, getattr(getattr(tuners, method).layer, layer_face))
    assert not isinstance(layer.base_layer, tuners_utils.BaseTunerLayer)
    assert not isinstance(made, tuners_utils.BaseTuner)


def test_a_layer_of_two_methods_is_both():
    made = get_peft_model(Net(), lora(target_modules=["linear"]), "one", mixed=True)
    made.add_adapter("two", trimtab.LoHaConfig(target_modules=["linear"]))
    layer = made.base_model.model.linear
    assert isinstance(layer, tuners.lora.LoraLayer)
    assert isinstance(layer, tuners.loha.LoHaLayer)
    made.delete_adapter("one")
    assert not isinstance(layer, tuners.lora.LoraLayer)


def test_faces_by_site():
    config = lora(target_modules=["words", "linear", "conv", "attention"], target_parameters=["expert.weight"])
    net = get_peft_model(Net(), config).base_model.model
    wanted = {
        "words": "Embedding",
        "linear": "Linear",
        "conv": "Conv2d",
        "attention": "MultiheadAttention",
        "expert": "ParamWrapper",
    }
    for path, face in wanted.items():
        faces = [f for f in wanted.values() if isinstance(getattr(net, path), getattr(tuners.lora.layer, f))]
        assert faces == [face]
    assert not isinstance(net.conv, tuners.lora.Conv3d)


def test_subclasses():
    assert issubclass(tuners.lora.Linear, tuners.lora.LoraLayer)
    assert issubclass(tuners.lora.LoraLayer, tuners_utils.BaseTunerLayer)
    assert issubclass(trimtab.AdapterLayer, tuners_utils.BaseTunerLayer)
    assert not issubclass(nn.Linear, tuners_utils.BaseTunerLayer)
    assert not issubclass(tuners.loha.LoHaLayer, tuners.lora.LoraLayer)


def test_a_face_has_no_instances_but_a_tuner_can_be_made():
    with pytest.raises(TypeError, match="LoraLayer has no instances of its own"):
        tuners.lora.LoraLayer(nn.Linear(2, 2))
    tuner = tuners.lora.LoraModel(Net(), lora(), "default")
    assert isinstance(tuner, tuners.lora.LoraModel)


# what is read
def test_a_layer_reads_as_in_peft(model):
    layer = model.base_model.model.linear
    assert type(layer.lora_A["default"]) is nn.Linear
    assert (layer.r, layer.lora_alpha, layer.scaling) == ({"default": 2}, {"default": 6}, {"default": 3.0})
    assert layer.active_adapters == layer.active_adapter == ["default"]
    assert (layer.disable_adapters, layer.merged, layer.merged_adapters) == (False, False, [])
    assert layer.get_base_layer() is layer.base_layer
    assert layer.weight is layer.base_layer.weight
    assert (layer.in_features, layer.out_features) == (6, 5)
    assert model.base_model.model.words.in_features == 7
    assert "lora_A" in layer.adapter_layer_names


def test_a_layer_reads_as_the_very_layer_of_peft():
    peft = pytest.importorskip("peft")
    config = {"target_modules": ["words", "linear", "conv"], "r": 2, "lora_alpha": 6, "rank_pattern": {"conv": 4}}
    nets = [library.get_peft_model(Net(), library.LoraConfig(**config)).base_model.model for library in (trimtab, peft)]
    for path in config["target_modules"]:
        ours, theirs = (net.get_submodule(path) for net in nets)
        for name in (
            "r lora_alpha scaling active_adapters active_adapter disable_adapters merged merged_adapters use_rslora "
            "use_dora in_features out_features"
        ).split():
            assert getattr(ours, name) == getattr(theirs, name), (path, name)


def test_the_delta_of_a_layer_is_that_of_peft():
    peft = pytest.importorskip("peft")
    models = []
    for library in (trimtab, peft):
        torch.manual_seed(0)
        config = {"target_modules": ["words", "linear", "conv"], "init_lora_weights": False}
        models.append(library.get_peft_model(Net(), library.LoraConfig(**config)))
    ours, theirs = models
    ours.load_state_dict(theirs.state_dict())
    for path in ("words", "linear", "conv"):
        delta, wanted = (m.base_model.model.get_submodule(path).get_delta_weight("default") for m in models)
        torch.testing.assert_close(delta, wanted.detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(trimtab.AdapterError, match="no adapter 'other'; there are 'default'"):
        ours.base_model.model.linear.get_delta_weight("other")


# what is called
def test_scale():
    made = get_peft_model(Net(), lora(), "a")
    made.add_adapter("b", lora())
    layer = made.base_model.model.linear
    layer.scale_layer(2.0)
    assert layer.scaling == {"a": 6.0, "b": 3.0}
    layer.unscale_layer(4.0)
    assert layer.scaling["a"] == 1.5
    layer.unscale_layer()
    layer.set_scale("b", 0.5)
    layer.set_scale("not here", 0.5)
    assert layer.scaling == {"a": 3.0, "b": 1.5}


def test_scale_acts(model):
    x = torch.arange(7)
    changed = model(x)
    with model.disable_adapter():
        plain = model(x)
    with helpers.rescale_adapter_scale(model, 0.0):
        layers = [m for m in model.modules() if isinstance(m, trimtab.AdapterLayer)]
        assert all(layer.scaling["default"] == 0 for layer in layers)
        model.base_model.model.head.enable_adapters(False)
        torch.testing.assert_close(model(x), plain)
    model.base_model.model.head.enable_adapters(True)
    assert torch.equal(model(x), changed)
    with (
        pytest.raises(trimtab.ConfigError, match="must be a number, not a str"),
        helpers.rescale_adapter_scale(model, "1"),
    ):
        pass
    with pytest.raises(trimtab.AdapterError, match="no adapters"), helpers.rescale_adapter_scale(Net(), 1.0):
        pass


def test_merge_of_one_layer(model):
    layer = model.base_model.model.linear
    before, delta = layer.weight.clone(), layer.get_delta_weight("default")
    layer.merge(safe_merge=True)
    assert (layer.merged, layer.merged_adapters) == (True, ["default"])
    torch.testing.assert_close(layer.weight - before, delta)
    with pytest.warns(trimtab.TrimtabWarning, match="nothing to merge"):
        layer.merge()
    layer.unmerge()
    assert torch.equal(layer.weight, before)
    with torch.no_grad():
        layer.lora_A["default"].weight[0, 0] = float("nan")
    with pytest.raises(trimtab.MergeError, match="NaN"):
        layer.merge()
    assert torch.equal(layer.weight, before)


def test_switching_one_layer():
    made = get_peft_model(Net(), lora(modules_to_save=["head"]), "a")
    made.add_adapter("b", lora(modules_to_save=["head"]))
    for layer in (made.base_model.model.linear, made.base_model.model.head):
        layer.set_adapter("b")
        assert layer.active_adapters == ["b"]
        trained = {n.split(".")[-2] for n, p in layer.named_parameters() if p.requires_grad}
        assert trained == {"b"}
        layer.set_requires_grad("b", False)
        assert not any(p.requires_grad for p in layer.parameters())
        layer.set_adapter(["a"], inference_mode=True)
        assert not any(p.requires_grad for p in layer.parameters())
        layer.enable_adapters(False)
        assert layer.disable_adapters
        layer.enable_adapters(True)
        layer.delete_adapter("a")
        assert layer.active_adapters == ["b"]


# functions
def test_functions_on_any_model():
    net = trimtab.inject_adapter_in_model(lora(), Net(), "a")
    trimtab.inject_adapter_in_model(lora(), net, "b")
    functional.set_adapter(net, "a")
    assert net.linear.active_adapters == ["a"]
    functional.set_requires_grad(net, ["a", "b"], False)
    assert not any(p.requires_grad for p in net.parameters())
    assert functional.delete_adapter(net, "a", prefix="lora_") == ["b"]
    assert not any(".a." in key for key in net.state_dict())
    net.linear.lora_A["b"].to(torch.bfloat16)
    functional.cast_adapter_dtype(net, "b", autocast_adapter_dtype=False)
    assert net.linear.lora_A["b"].weight.dtype == torch.bfloat16
    functional.cast_adapter_dtype(net, "b")
    assert net.linear.lora_A["b"].weight.dtype == torch.float32
    net.linear.merge()
    assert tuners_utils.check_adapters_to_merge(net.linear) == []
    assert tuners_utils.check_adapters_to_merge(net.conv) == ["b"]


def test_targets():
    config = lora(target_modules=["q_proj"], exclude_modules=["last.q_proj"])
    hits = [
        functional.check_target_module_exists(config, k) for k in ("q_proj", "a.q_proj", "my_q_proj", "last.q_proj")
    ]
    assert hits == [True, True, False, False]


def test_input_casting_can_be_switched_off(model):
    seen = []
    layer = model.base_model.model.linear
    layer.lora_dropout["default"].register_forward_hook(lambda m, args, out: seen.append(args[0].dtype))
    model.to(torch.float64)
    layer.lora_A["default"].float()
    layer.lora_B["default"].float()
    with trimtab.fast_mode("off"):
        layer(torch.randn(2, 6, dtype=torch.float64))
        with helpers.disable_input_dtype_casting(model), pytest.raises(RuntimeError, match="dtype"):
            layer(torch.randn(2, 6, dtype=torch.float64))
        layer(torch.randn(2, 6, dtype=torch.float64))
    assert layer.cast_input_dtype_enabled


def test_a_folder_of_an_adapter_is_told_from_another(model, tmp_path):
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "other").mkdir()
    assert helpers.check_if_peft_model(str(tmp_path / "adapter"))
    assert not helpers.check_if_peft_model(str(tmp_path / "other"))


def test_signatures_of_the_base_model_can_be_taken_over(model):
    helpers.update_forward_signature(model)
    assert list(inspect.signature(model.forward).parameters) == ["x"]
    assert model(torch.arange(3)).shape == (3, 2)
    helpers.update_signature(model)
    with pytest.raises(trimtab.ConfigError, match="'all'"):
        helpers.update_signature(model, "backward")


def test_small_functions():
    ids = torch.tensor([[5, 6, -100]])
    assert utils.shift_tokens_right(torch.tensor([[5, -100, 7]]), 0, 2).tolist() == [[2, 5, 0]]
    with pytest.raises(trimtab.ConfigError, match="pad_token_id"):
        utils.shift_tokens_right(ids, None, 2)
    assert utils.transpose(torch.zeros(2, 3), True).shape == (3, 2)
    assert utils.transpose(ids, False) is ids
    assert utils.infer_device() in ("cpu", "cuda", "mps", "xpu")
    net = Net()
    parent, module, name = utils._get_submodules(net, "linear")
    assert (parent, module, name) == (net, net.linear, "linear")
    a = torch.zeros(4)
    assert utils.id_tensor_storage(a) == utils.id_tensor_storage(a[1:]) != utils.id_tensor_storage(torch.zeros(4))


def test_mixed_precision_cast(model):
    utils.cast_mixed_precision_params(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with pytest.raises(trimtab.ConfigError, match="half-precision"):
        utils.cast_mixed_precision_params(model, torch.float32)


def test_fsdp_policy_wraps_trained_leaves(model):
    policy = other.fsdp_auto_wrap_policy(model)
    layer = model.base_model.model.linear
    wrapped = [policy(module=m, recurse=False, nonwrapped_numel=0) for m in (layer.lora_A["default"], layer.base_layer)]
    assert wrapped == [True, False]


def test_default_targets_are_those_of_peft():
    """Wherever PEFT has any; some of ours are for more architectures."""
    constants = pytest.importorskip("peft.utils.constants")
    names = [name for name in vars(utils) if name.startswith("TRANSFORMERS_MODELS_TO_") and hasattr(constants, name)]
    assert len(names) > 10
    for name in names:
        ours, theirs = getattr(utils, name), getattr(constants, name)
        assert {k: sorted(ours[k]) for k in theirs} == {k: sorted(v) for k, v in theirs.items()}, name


def test_a_card_is_written_or_completed(model, tmp_path):
    model.create_or_update_model_card(tmp_path)
    whole = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in whole
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: mine\n---\n# My model\n")
    model.create_or_update_model_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text == "---\nlicense: mit\nbase_model: mine\nlibrary_name: peft\n---\n# My model\n"
    (tmp_path / "README.md").write_text("# No head\n")
    model.create_or_update_model_card(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("library_name: peft\n---\n# No head\n")


# what a base is stored as, what is beside a method, and methods of other people
def test_a_quantised_layer_tells_its_storage():
    plain, layer = nn.Linear(64, 8), nn.Sequential(nn.Linear(64, 8))
    trimtab.quantize_(layer, trimtab.NF4(), ["0"])
    assert utils.resolve_quantization_backend(plain) is None
    backend = utils.resolve_quantization_backend(layer[0])
    assert (backend.backend_name, backend.supports_merge) == ("nf4", True)
    backend.set_base_weight(torch.ones(8, 64))
    torch.testing.assert_close(backend.get_base_weight(), torch.ones(8, 64))
    adapted = get_peft_model(layer, trimtab.LoraConfig(target_modules=["0"])).base_model.model[0]
    assert utils.quantization_extra_repr(adapted) == "quantization_backend=nf4"
    assert (utils.quantization_extra_repr(plain), utils.get_quantization_kwargs(layer)) == ("", {})


def test_a_model_tells_the_quantisation_it_was_loaded_with():
    model = nn.Linear(1, 1)
    assert utils.get_quantization_config(model, "gptq") is None
    model.config, model.quantization_method = types.SimpleNamespace(quantization_config="its config"), "gptq"
    assert utils.get_quantization_config(model, "gptq") == "its config"
    assert utils.get_quantization_config(model, "awq") is None


def test_a_cache_goes_where_the_layers_are():
    layers = [types.SimpleNamespace(keys=torch.ones(2), values=torch.ones(2)) for _ in range(2)]
    model = types.SimpleNamespace(hf_device_map={"embed": "meta", "layers.0": "cpu", "layers.1": "meta"})
    utils.map_cache_to_layer_device_map(model, types.SimpleNamespace(layers=layers))
    assert [(x.keys.device.type, x.values.device.type) for x in layers] == [("cpu", "cpu"), ("meta", "meta")]


def test_a_prefix_as_bloom_took_it():
    peft = pytest.importorskip("peft")
    prompt = tuple(torch.randn(4, 2, 3, 5, 7).split(2))
    ours, theirs = (p.utils.bloom_model_postprocess_past_key_value(prompt) for p in (trimtab, peft))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("active", [True, False])
def test_what_is_trained_beside_a_method_alone(active):
    net, x = Net(), torch.tensor([[1, 2]])
    before = net(x)
    config = lora(target_modules=["linear"], modules_to_save=["head"], trainable_token_indices={"words": [1]})
    utils.set_additional_trainable_modules(net, config, None, "default", activate_adapter=active)
    with torch.no_grad():
        net.words.token_adapter.trainable_tokens_delta["default"].add_(1)
    assert torch.equal(net(x)[0, 0], before[0, 0]) != active
    utils._freeze_adapter(net, "default")
    assert not net.head.modules_to_save["default"].weight.requires_grad
    with pytest.raises(trimtab.AdapterError, match="already has an adapter 'default'"):
        utils.set_additional_trainable_modules(net, config, None, "default")


def test_a_method_of_other_people():
    class Shift(trimtab.Method):
        def slots(self, site, cfg):
            return {"shift": trimtab.Slot(name="shift_by", shape=(1,))}

        def weight(self, w, a):
            return w + a.shift

    @dataclasses.dataclass(kw_only=True)
    class ShiftConfig(trimtab.AdapterConfig):
        pass

    utils.register_peft_method(name="shift", config_cls=ShiftConfig, model_cls=Shift)
    try:
        net = get_peft_model(Net(), ShiftConfig(target_modules=["linear"]))
        assert net.peft_type == "SHIFT"
        assert [n for n, p in net.named_parameters() if p.requires_grad] == ["base_model.model.linear.shift_by.default"]
        with pytest.raises(trimtab.ConfigError, match="there is a method 'shift' already"):
            utils.register_peft_method(name="shift", config_cls=ShiftConfig, model_cls=Shift)
    finally:
        del trimtab.CONFIGS["SHIFT"], REGISTERED["SHIFT"]
    with pytest.raises(trimtab.ConfigError, match=r"`model_cls`=Linear must be .*; `config_cls`=dict must be"):
        utils.register_peft_method(name="x", config_cls=dict, model_cls=nn.Linear)

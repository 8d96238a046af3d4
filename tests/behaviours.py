"""The columns of the table: each a function of a row and an empty folder that raises where the behaviour is missing."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.models import shake
from tests.row import QUANTISED, Row
from torch import Tensor, nn

import trimtab
from trimtab.layer import AdapterLayer

COLUMNS: dict[str, Callable[[Row, Path], None]] = {}
EXACT = {"rtol": 0, "atol": 0}


def column(name: str) -> Callable[..., Any]:
    def register(check: Callable[[Row, Path], None]) -> Callable[[Row, Path], None]:
        COLUMNS[name] = torch.no_grad()(check) if check.__name__ not in TRAINS else check
        return check

    return register


TRAINS = ("gradients", "training_rows", "compiled", "compiled_pair")


def same(a: Tensor, b: Tensor, **tolerance: float) -> None:
    """Close: to 1e-5, of the largest value where that is above one."""
    scale = 1e-5 * max(1.0, float(b.detach().abs().max()))
    torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-5, "atol": scale}))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def bits(t: Tensor) -> bytes:
    """A tensor's contents, NaN and the tensors within a class of tensors included."""
    if hasattr(t, "__tensor_flatten__"):
        return b"".join(bits(getattr(t, name)) for name in t.__tensor_flatten__()[0])
    return t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    changed = [k for k in before if before[k].dtype != after[k].dtype or bits(before[k]) != bits(after[k])]
    assert not changed, f"changed: {changed}"


def adapter_layers(model: nn.Module) -> list[AdapterLayer]:
    return [m for m in model.modules() if isinstance(m, AdapterLayer)]


def has_effect(row: Row, model: nn.Module, y: Tensor) -> None:
    """What a comparison needs in order to mean anything."""
    assert (y - row.output(row.base())).abs().max() > 1e-3, "the adapter does nothing: the comparison shows nothing"


# beside PEFT
@column("keys in memory")
def keys(row: Row, folder: Path) -> None:
    ours, theirs = ({k: v.shape for k, v in row.fresh(lib).state_dict().items()} for lib in (trimtab, peft))
    assert ours == theirs


@column("files")
def files(row: Row, folder: Path) -> None:
    for library in (trimtab, peft):
        row.trained(library).save_pretrained(folder / library.__name__)
    ours, theirs = (load_file(folder / n / "adapter_model.safetensors") for n in ("trimtab", "peft"))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    ours, theirs = (json.loads((folder / n / "adapter_config.json").read_text()) for n in ("trimtab", "peft"))
    for config in (ours, theirs):  # sets in PEFT: their order means nothing
        for key, value in config.items():
            config[key] = sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        if "fan_in_fan_out" in config:  # PEFT notes the layout of Conv1D there, and reads it off the layer like us
            config["fan_in_fan_out"] = False
        if row.options.get("target_modules") == "all-linear":  # the keys say which; PEFT lists paths, we endings
            del config["target_modules"]
    assert ours == theirs


@column("reads PEFT's file")
def reads(row: Row, folder: Path) -> None:
    theirs = row.trained(peft)
    theirs.save_pretrained(folder)
    expected = row.output(theirs)
    has_effect(row, theirs, expected)
    ours = trimtab.PeftModel.from_pretrained(row.base(), folder)
    same(row.output(ours), expected)


@column("PEFT reads ours")
def written(row: Row, folder: Path) -> None:
    ours = row.trained()
    ours.save_pretrained(folder)
    expected = row.output(ours)
    has_effect(row, ours, expected)
    theirs = peft.PeftModel.from_pretrained(row.base(), str(folder)).eval()
    same(row.output(theirs), expected)


# the equation
@column("forward = op(x, weight(W))")
def equation(row: Row, folder: Path) -> None:
    model = row.trained()
    for mode in ("auto", "off"):
        seen: dict[AdapterLayer, Any] = {}
        hooks = [
            layer.register_forward_hook(lambda m, x, k, y, seen=seen: seen.update({m: (x, k, y)}), with_kwargs=True)
            for layer in adapter_layers(model)
        ]
        with trimtab.fast_mode(mode):
            row.output(model)
        for hook in hooks:
            hook.remove()
        assert seen
        for layer, (args, kwargs, y) in seen.items():
            w, b = layer.effective()
            defined = layer.site.call(w, b, *args, **kwargs)
            for one, other in zip(*((t if isinstance(t, tuple) else (t,)) for t in (y, defined)), strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    same(one, other)


@column("no effect at first")
def fresh(row: Row, folder: Path) -> None:
    same(row.output(row.fresh()), row.output(row.plain()))


# merge
MERGE = "merge = forward, unmerge exact"


@column(MERGE)
def merge(row: Row, folder: Path) -> None:
    for dtype, tolerance in ((torch.float32, {}), (torch.bfloat16, {"rtol": 0.1, "atol": 0.15})):
        model = shake(row.fresh(dtype=dtype), size=0.1)
        before, y = state(model), row.output(model)
        report = model.merge_adapter()
        same(row.output(model), y, **tolerance)
        assert report.layers
        assert dtype == torch.bfloat16 or report.largest == 0
        model.unmerge_adapter()
        same_state(model, before)
        same(row.output(model), y, **EXACT)


@column("safe_merge refuses NaN")
def safe(row: Row, folder: Path) -> None:
    """So does a merge that is impossible anyway; what was asked is named, and nothing is changed."""
    model = row.trained()
    layer = adapter_layers(model)[-1]
    victim = next(held[key] for held, key, trained in layer.owned("default") if trained)
    victim.view(-1)[0] = float("nan")
    before = {k: bits(t) for k, t in model.state_dict().items()}
    for act, safe_merge in product((model.merge_adapter, model.merge_and_unload), (True, False)):
        with pytest.raises(trimtab.MergeError, match=f"nothing was changed: .*{re.escape(layer.path)}"):
            act(safe_merge=safe_merge)
        assert {k: bits(t) for k, t in model.state_dict().items()} == before
        assert not any(m.merged_adapters for m in adapter_layers(model))


@column("merge_and_unload, unload")
def unload(row: Row, folder: Path) -> None:
    model, base = row.trained(), row.plain()
    y = row.output(model)
    plain = copy.deepcopy(model).merge_and_unload()
    assert type(plain) is type(base)
    assert [type(m) for m in plain.modules()] == [type(m) for m in base.modules()]
    assert plain.state_dict().keys() == base.state_dict().keys()
    same(row.output(plain), y)
    plain = model.unload()
    assert plain.state_dict().keys() == base.state_dict().keys()
    if not row.leaves_out("disable = base"):
        same_state(plain, base.state_dict())


@column(QUANTISED)
def merge_quantised(row: Row, folder: Path) -> None:
    model = row.trained()
    before, y = state(model), row.output(model)
    held = {layer.path: layer.merged_weight(["default"])[0] for layer in adapter_layers(model)}
    twin = copy.deepcopy(model)
    report = model.merge_adapter()
    for layer, error in zip(adapter_layers(model), report.layers, strict=True):
        assert error.codec == layer.site.codec
        assert error.largest == float((layer.site.weight() - held[layer.path]).abs().max()) > 0
    assert f"quantised again ({report.layers[0].codec})" in str(report)
    model.unmerge_adapter()
    same_state(model, before)
    same(row.output(model), y, **EXACT)
    plain, base = twin.merge_and_unload(dequantize=True), replace(row, codec="").base()
    assert "quantised" not in str(twin.merge_report)
    for path in held:
        assert type(plain.get_submodule(path)) is type(base.get_submodule(path))
        assert plain.get_submodule(path).state_dict().keys() == base.get_submodule(path).state_dict().keys()
    same(row.output(plain), y)
    same_state(model.unload(), row.base().state_dict())


@column("disable = base")
def disable(row: Row, folder: Path) -> None:
    model = row.trained()
    expected, y = row.output(row.plain()), row.output(model)
    for merged in (False, True):
        if merged and row.leaves_out(MERGE):
            break
        if merged:
            model.merge_adapter()
        with model.disable_adapter():
            same(row.output(model), expected, **EXACT)
        same(row.output(model), y)


# several adapters
def pair(row: Row) -> Any:
    """A model with adapters `default` and `other`, both trained."""
    model = row.fresh()
    model.add_adapter("other", row.config())
    model.set_requires_grad(["default", "other"])
    return shake(shake(model, 5, only="default"), 6, only="other")


def solo(row: Row, model: Any, names: list[str]) -> dict[str, Tensor]:
    """The output with each of these adapters alone."""
    found = {}
    for name in names:
        model.set_adapter(name)
        found[name] = row.output(model)
    return found


@column("two adapters")
def two(row: Row, folder: Path) -> None:
    model = pair(row)
    alone = solo(row, model, ["other", "default", "other"])
    assert (alone["default"] - alone["other"]).abs().max() > 1e-4
    model.base_model.set_adapter(["default", "other"])
    both = row.output(model)
    assert all((both - y).abs().max() > 1e-4 for y in alone.values())
    if not row.leaves_out(MERGE):
        model.merge_adapter()  # composed by definition, in the order of activation
        same(row.output(model), both)
        model.unmerge_adapter()
    model.delete_adapter("default")
    assert not any(".default" in k for k in model.state_dict())
    assert model.active_adapters == ["other"]
    same(row.output(model), alone["other"], **EXACT)


@column("rows")
def rows(row: Row, folder: Path) -> None:
    model = row.trained() if row.without.get("two adapters") else pair(row)
    names = ["default", "__base__", "default" if row.without.get("two adapters") else "other", "default"]
    found = row.output(model, adapter_names=names)
    alone = solo(row, model, sorted(set(names) - {"__base__"}))
    with model.disable_adapter():
        alone["__base__"] = row.output(model)
    for i, name in enumerate(names):
        same(found[i], alone[name][i])


@column("rows, training")
def training_rows(row: Row, folder: Path) -> None:
    one = bool(row.without.get("two adapters"))
    model = row.trained() if one else pair(row)
    model.train()
    names = ["default", "__base__", "default" if one else "other", "default"]
    row.output(model, adapter_names=names).pow(2).sum().backward()
    for name in sorted(set(names) - {"__base__"}):
        found = {k: p.grad.clone() for k, p in model.named_parameters() if f".{name}" in k and p.grad is not None}
        assert found
        model.zero_grad()
        model.set_adapter(name)
        mine = [i for i, n in enumerate(names) if n == name]
        row.output(model)[mine].pow(2).sum().backward()
        alone = {k: p.grad for k, p in model.named_parameters() if f".{name}" in k and p.grad is not None}
        assert found.keys() == alone.keys()
        for key, gradient in found.items():
            same(gradient, alone[key], rtol=1e-4, atol=1e-4)
        if not one:  # again, for the next name
            model.zero_grad()
            model.set_requires_grad(["default", "other"])
            row.output(model, adapter_names=names).pow(2).sum().backward()


# numbers
def number_formats(model: nn.Module) -> set[torch.dtype]:
    """Those of the adapter's tensors that have none of their own."""
    adapters = [layer.adapters["default"] for layer in adapter_layers(model)]
    own = [a.tensor(key) for a in adapters for key, slot in a.slots.items() if slot.dtype is None]
    return {p.dtype for p in own if p.is_floating_point()}


@column("bf16 base, autocast")
def dtypes(row: Row, folder: Path) -> None:
    full = row.output(row.trained())
    spread = {"rtol": 0.1, "atol": float(0.1 * full.abs().max() + 0.05)}
    model = shake(row.fresh(dtype=torch.bfloat16))
    assert number_formats(model) == {torch.float32}
    y = row.output(model)
    assert y.dtype == torch.bfloat16
    same(y.float(), full, **spread)
    model = row.trained()
    with torch.autocast("cpu", torch.bfloat16):
        same(row.output(model).float(), full, **spread)
    half = row.fresh(dtype=torch.bfloat16, autocast_adapter_dtype=False)
    assert number_formats(half) == {torch.bfloat16}
    assert row.output(half).isfinite().all()


@column("only adapters move")
def gradients(row: Row, folder: Path) -> None:
    model = row.trained().train()
    trainable = {k for k, p in model.named_parameters() if p.requires_grad}
    own = {id(held[key]) for layer in adapter_layers(model) for held, key, trained in layer.owned("default") if trained}
    own |= {id(p) for k, p in model.named_parameters() if ".modules_to_save.default." in k}
    if row.options.get("bias", "none") != "none":
        own |= {id(p) for k, p in model.named_parameters() if k.endswith(".bias") and p.requires_grad}
    assert {k for k, p in model.named_parameters() if id(p) in own} == trainable
    before = state(model)
    row.output(model).pow(2).sum().backward()
    dead = [k for k, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead, f"no gradient: {dead}"
    torch.optim.SGD(model.parameters(), 0.1).step()
    moved = {k for k, v in model.state_dict(keep_vars=True).items() if bits(v) != bits(before[k])}
    assert moved >= trainable
    assert {id(model.state_dict(keep_vars=True)[k]) for k in moved} == own


# files and copies
@column("save and load")
def round_trip(row: Row, folder: Path) -> None:
    model = row.trained()
    y = row.output(model)
    model.save_pretrained(folder)
    held = trimtab.get_peft_model_state_dict(model)
    for low in (False, True):
        loaded = trimtab.PeftModel.from_pretrained(row.base(), folder, low_cpu_mem_usage=low)
        assert not any(t.is_meta for t in loaded.state_dict().values())
        assert not any(p.requires_grad for p in loaded.parameters())
        again = trimtab.get_peft_model_state_dict(loaded)
        assert held.keys() == again.keys()
        assert all(torch.equal(held[k], again[k]) for k in held)
        same(row.output(loaded), y, **EXACT)
    trained_on = trimtab.PeftModel.from_pretrained(row.base(), folder, is_trainable=True)
    expected = {k for k, p in model.named_parameters() if p.requires_grad}
    assert {k for k, p in trained_on.named_parameters() if p.requires_grad} == expected


@column("set_peft_model_state_dict")
def filled(row: Row, folder: Path) -> None:
    model = row.trained()
    tensors = {k: v.clone() for k, v in trimtab.get_peft_model_state_dict(model).items()}
    for low in (False, True):
        other = row.fresh(low_cpu_mem_usage=low)
        result = trimtab.set_peft_model_state_dict(other, tensors)
        assert result == ([], [])
        same(row.output(other), row.output(model), **EXACT)


@column("deepcopy, state_dict")
def copies(row: Row, folder: Path) -> None:
    model = row.trained()
    y, before = row.output(model), state(model)
    twin = copy.deepcopy(model)
    same(row.output(twin), y, **EXACT)
    shake(twin, 9)
    assert (row.output(twin) - y).abs().max() > 1e-4
    same_state(model, before)
    same(row.output(model), y, **EXACT)
    other = row.fresh()
    other.load_state_dict(before)
    same(row.output(other), y, **EXACT)


@column("compile(fullgraph)")
def compiled(row: Row, folder: Path) -> None:
    """The first adapter layer, with one adapter; whole models are compiled in test_architectures.py."""
    same_compiled(row, row.trained())


@column("compile, two adapters")
def compiled_pair(row: Row, folder: Path) -> None:
    model = pair(row)
    model.base_model.set_adapter(["default", "other"])
    same_compiled(row, model)


def same_compiled(row: Row, model: Any) -> None:
    """The first adapter layer's result and gradients are those that it has eagerly."""
    layer, seen = adapter_layers(model)[0], []
    layer.register_forward_pre_hook(lambda m, x, k: seen.append((x, k)), with_kwargs=True)
    with torch.no_grad():
        row.output(model)
    layer._forward_pre_hooks.clear()
    (args, kwargs), *_ = seen
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        y = run(*args, **kwargs)
        y = y[0] if isinstance(y, tuple) else y
        y.pow(2).sum().backward()
        results.append([y, *(p.grad for p in layer.parameters() if p.requires_grad and p.grad is not None)])
    torch._dynamo.reset()
    for eager, compiled in zip(*results, strict=True):
        same(compiled, eager, rtol=1e-4, atol=1e-4)

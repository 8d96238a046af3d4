"""An adapter's state: its tensors by file key, enumerated from slots; loading them with every mismatch in one error."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import offload
from .config import AdapterConfig
from .errors import AdapterFileError, warn
from .form import Form
from .inject import biases
from .layer import AdapterLayer
from .match import adapter_layers, ends_with, modules
from .method import Adapter
from .shared import brings_shared
from .wrappers import ModulesToSaveWrapper


class Strictness:
    """Whether a mismatch of file and model is an error where the caller does not say; off when standing in for peft."""

    def __init__(self) -> None:
        self.on = True


STRICT = Strictness()

WEIGHTS_NAME = "adapter_model.safetensors"
EMBEDDINGS = ("embed_tokens", "lm_head")


class LoadResult(NamedTuple):
    """What a load left undone: keys of the model that the file lacks, and keys of the file that the model lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass
class Entry:
    """One tensor of an adapter: its name in memory, where it is now, and how to put another in its place.

    Where a file holds another form of it, `tensor` is what it holds, `put` takes that, `part` makes it of the whole.
    """

    path: str
    tensor: Tensor
    put: Callable[[Tensor], None]
    part: Callable[[Tensor], Tensor] = torch.Tensor.detach
    owner: tuple[Adapter, str] | None = None  # the adapter of one layer, and its name for the tensor


def _held_elsewhere(value: Tensor) -> None:
    """Nothing to do: the tensor is another's, which the file holds too."""


def _copy_into(held: Tensor) -> Callable[[Tensor], None]:
    def put(value: Tensor) -> None:
        with torch.no_grad():
            held.copy_(value)

    return put


def _replace(
    owner: nn.Module, key: str, held: nn.Parameter, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], None]:
    def put(value: Tensor) -> None:
        owner._parameters[key] = nn.Parameter(value.to(device, dtype, copy=True), requires_grad=held.requires_grad)

    return put


def entries(model: nn.Module, name: str, cfg: AdapterConfig, root: str = "") -> dict[str, Entry]:
    """All tensors of adapter `name`, by file key. `root` is the path of `model` in its `PeftModel` ("base_model.")."""
    found: dict[str, Entry] = {}
    for path, module in modules(model):
        if isinstance(module, AdapterLayer) and not module.follows:
            found.update(_of_layer(module, name, f"{root}{path}."))
        elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            for key, tensor in module.modules_to_save[name].state_dict(keep_vars=True).items():
                held = f"{root}{path}.modules_to_save.{name}.{key}"
                found[f"{root}{path}.{key}"] = Entry(held, tensor, _copy_into(tensor))
    for path, parameter in biases(model, cfg).items():
        found[root + path] = Entry(root + path, parameter, _copy_into(parameter))
    inside = [f"{root}{p}.base_layer." for p, m in modules(model) if isinstance(m, AdapterLayer) and m.site.whole]
    return {_outside(key, inside): entry for key, entry in found.items()} | shared_entries(model, name, root)


def _outside(key: str, inside: list[str]) -> str:
    """A key without the wrappers of modules as a whole, which other adapters' files know nothing of."""
    for path in reversed(inside):  # the innermost first
        if key.startswith(path):
            key = path.removesuffix("base_layer.") + key.removeprefix(path)
    return key


def shared_entries(model: nn.Module, name: str, root: str = "") -> dict[str, Entry]:
    """The tensors that layers of adapter `name` share, by file key, each once."""
    found: dict[str, Entry] = {}
    for layer in adapter_layers(model):
        for slot in layer.adapters[name].slots.values() if name in layer.adapters else ():
            if slot.shared and slot.saved and root + slot.key not in found:
                owner, part = layer.holder(slot, name)
                tensor = getattr(owner, part)
                found[root + slot.key] = Entry(root + slot.inside(name), tensor, _copy_into(tensor))
    return found


def _repeated(model: nn.Module, name: str, root: str) -> Iterator[tuple[str, Entry]]:
    """Entries, with every layer's keys, of what layers share: PEFT's files may hold that once more with each layer."""
    shared = shared_entries(model, name, root)
    for path, layer in modules(model):
        if shared and isinstance(layer, AdapterLayer) and name in layer.adapters:
            for slot in layer.adapters[name].slots.values():
                if slot.shared and slot.saved:
                    entry = shared[root + slot.key]
                    yield f"{root}{path}.{slot.key}", Entry(entry.path, entry.tensor, _held_elsewhere)


def _in_form(entry: Entry, form: Form) -> Iterator[tuple[str, Entry]]:
    """Entries of what a file holds for one tensor, by what their keys add; the tensor is put when all are there."""
    given: dict[str, Tensor] = {}

    def put(suffix: str, value: Tensor) -> None:
        given[suffix] = value
        if given.keys() == form.parts.keys():
            entry.put(form.whole(entry.tensor, *map(given.pop, form.parts)))

    for suffix, part in form.parts.items():
        yield suffix, Entry(entry.path, part(entry.tensor.detach()), partial(put, suffix), part)


def _of_layer(layer: AdapterLayer, name: str, path: str) -> Iterator[tuple[str, Entry]]:
    a = layer.adapters.get(name)
    if a is None:
        return
    keys, forms = {s.place: k for k, s in a.slots.items()}, a.method.in_file(a)
    for key, slot in a.slots.items() if a.follows else ():
        yield path + slot.key, Entry(path + slot.key, a.tensor(key), _held_elsewhere, owner=(a, key))
    for slot, parameter in layer.parameters_of(name):
        if not slot.saved:
            continue
        if parameter.is_meta:
            put = _replace(*layer.holder(slot, name), parameter, parameter.dtype, layer.site.device)
        else:
            put = _copy_into(parameter)
        key = keys[slot.place]
        entry = Entry(path + slot.inside(name), parameter, put, owner=(a, key))
        filed = _in_form(entry, forms[key]) if key in forms else [("", entry)]
        yield from ((path + slot.key + added, each) for added, each in filed)


def adapter_state(
    model: nn.Module,
    name: str,
    cfg: AdapterConfig,
    root: str = "",
    embeddings: bool = False,
    whole: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tensors of adapter `name` by file key, detached; `embeddings`: those of the base's embeddings besides.

    `whole`: tensors by their names in memory to take instead of the model's own, as gathered from a sharded model.
    """
    whole = whole or {}
    state = {
        key: e.part(whole[e.path]) if e.path in whole else e.tensor.detach()
        for key, e in entries(model, name, cfg, root).items()
    }
    if embeddings:
        state |= {root + k: t.detach() for k, t in embedding_tensors(model).items()}
    return state


def embedding_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the base's input and output embeddings, by their path in `model`."""
    ours = [f"{path}.base_layer." for path, m in model.named_modules() if isinstance(m, AdapterLayer)]
    found: dict[str, Tensor] = {}
    for path, _ in model.named_parameters(remove_duplicate=False):
        bare = path
        for o in ours:
            bare = bare.replace(o, o.removesuffix("base_layer."))
        if ends_with(bare.rpartition(".")[0], EMBEDDINGS) and path.rpartition(".")[2] in ("weight", "bias"):
            owner, _, key = path.rpartition(".")
            found[path] = offload.get(model.get_submodule(owner), key)
    return found


def load_state(
    model: nn.Module, name: str, cfg: AdapterConfig, tensors: Mapping[str, Tensor], root: str = "", strict: bool = True
) -> LoadResult:
    """Fill adapter `name` from tensors by file key; returns the keys that were missing and those left over.

    Every mismatch (missing, left over, other shape, with both shapes) is raised at once as `AdapterFileError`, before
    anything is written; with `strict=False` it is one warning, and what fits is loaded. A file none of whose tensors
    finds a place is always refused.
    """
    # With `bias="all"`, PEFT's files hold biases of modules trained in full a second time, under the wrapper's names.
    tensors = {k: t for k, t in tensors.items() if not {"modules_to_save", "original_module"} & set(k.split("."))}
    wanted = entries(model, name, cfg, root)
    allowed: dict[str, Entry] = {}
    if tensors.keys() - wanted.keys():
        allowed = {root + k: Entry(root + k, t, _copy_into(t)) for k, t in embedding_tensors(model).items()}
        allowed |= _repeated(model, name, root)
    result = fit(wanted, allowed, tensors, strict)
    for layer in adapter_layers(model):
        a = layer.adapters.get(name)
        if a is not None and not a.follows and brings_shared(a.slots):
            with torch.no_grad():
                a.method.derive(a)
    return result


def fit(
    wanted: Mapping[str, Entry], allowed: Mapping[str, Entry], tensors: Mapping[str, Tensor], strict: bool
) -> LoadResult:
    """Put tensors in the places that must be filled (`wanted`) or may be (`allowed`), by the rule of `load_state`."""
    places = {**allowed, **wanted}
    missing = [k for k in wanted if k not in tensors]
    unexpected = [k for k in tensors if k not in places]
    shapes = [k for k in tensors if k in places and tensors[k].shape != places[k].tensor.shape]
    report(missing, unexpected, shapes, tensors, places, strict)
    for key, tensor in tensors.items():
        if key in places and key not in shapes:
            places[key].put(tensor)
    return LoadResult(missing, unexpected)


def report(
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Entry],
    strict: bool,
) -> None:
    """Raise, or warn of, all that does not fit between a file and a model."""
    lines = [
        f"  {k}: the file has {tuple(tensors[k].shape)}, the model {tuple(places[k].tensor.shape)}" for k in shapes
    ]
    lines += [f"  {k}: in the model, not in the file" for k in missing]
    lines += [f"  {k}: in the file, not in the model" for k in unexpected]
    if not lines:
        return
    shown = lines[:20] + ([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])
    head = (
        f"the adapter does not fit the model: {len(shapes)} other shapes, {len(missing)} missing, "
        f"{len(unexpected)} left over"
    )
    text = "\n".join([head, *shown])
    if len(unexpected) + len(shapes) == len(tensors):
        raise AdapterFileError(f"{text}\nNone of its tensors finds a place: is it an adapter of another model?")
    if strict:
        raise AdapterFileError(f"{text}\nNothing was loaded. strict=False loads what fits.")
    warn(text)


def report_base(wrong: list[str], strict: bool) -> None:
    """Raise, or warn of, what speaks against this being the base that an adapter was made on."""
    if not wrong:
        return
    shown = wrong[:10] + ([f"  and {len(wrong) - 10} more"] if len(wrong) > 10 else [])
    text = "\n".join([f"the adapter was made on another base model: {len(wrong)} tensors differ", *shown])
    if strict:
        raise AdapterFileError(
            f"{text}\nA head that differs was probably initialised at random: name it in `modules_to_save` when "
            "training. Nothing was loaded. strict=False loads all the same."
        )
    warn(text)

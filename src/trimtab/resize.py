"""Another vocabulary under adapters: the base's embeddings are resized, and what stands on them with them."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import match
from .errors import AdapterError, listing
from .fingerprint import fingerprint
from .inject import unwrapped
from .layer import AdapterLayer
from .match import Place
from .method import Adapter
from .sites import site_of
from .wrappers import ModulesToSaveWrapper, TrainableTokensWrapper, Wrapper

if TYPE_CHECKING:
    from .model import PeftModel


@torch.no_grad()
def resize_token_embeddings(model: "PeftModel", new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
    """The base model's own `resize_token_embeddings`, with adapters in place; returns the input embedding.

    An adapter's tensors keep what they have and begin anew where there was nothing; copies of modules trained in full
    get the base's new rows. The next save holds the embeddings too, since no other base has these rows. Raises
    `AdapterError`, with nothing changed, while anything is merged and for trained rows that would be lost.
    """
    base: Any = model.get_base_model()
    if new_num_tokens is None:
        return base.resize_token_embeddings(None, **kwargs)
    cores = [base.get_input_embeddings(), base.get_output_embeddings()]
    cores = [unwrapped(core) for core in cores if core is not None]
    places = [p for p in match.walk(base) if any(unwrapped(p.module) is c for c in cores) and _is_wrapped(p)]
    _check(places, new_num_tokens)
    for place in places:
        place.parent._modules[place.key] = unwrapped(place.module)
    try:
        base.resize_token_embeddings(new_num_tokens, **kwargs)
    finally:
        for place in places:
            resized: Any = place.parent._modules[place.key]
            resized.requires_grad_(False)
            place.parent._modules[place.key] = place.module
            _put_under(place.module, resized)
    model.fingerprint = fingerprint(base)
    model.vocabulary_resized = True
    return base.get_input_embeddings()


def _is_wrapped(place: Place) -> bool:
    return isinstance(place.module, (AdapterLayer, Wrapper)) and not isinstance(place.parent, (AdapterLayer, Wrapper))


def _check(places: list[Place], rows: int) -> None:
    wrong = []
    for place in places:
        layer: Any = getattr(place.module, "token_adapter", place.module)
        if isinstance(layer, AdapterLayer) and layer.merged_adapters:
            wrong.append(f"{place.name}: {listing(layer.merged_adapters)} is merged; unmerge first")
        if isinstance(place.module, TrainableTokensWrapper):
            lost = sorted({i for a in layer.adapters.values() for i in a.cfg if i >= rows})
            wrong += [f"{place.name}: trained rows {listing(lost)} would be lost"] if lost else []
    if wrong:
        raise AdapterError(f"the vocabulary cannot become {rows} tokens: " + "; ".join(wrong))


def _put_under(wrapper: Any, resized: nn.Module) -> None:
    """Let a wrapper stand around a resized module."""
    if isinstance(wrapper, ModulesToSaveWrapper):
        for name, old in list(wrapper.modules_to_save.items()):
            twin = copy.deepcopy(resized).requires_grad_(True)
            for key, parameter in twin.named_parameters():
                _copy_corner(old.get_parameter(key), parameter)
            wrapper.modules_to_save[name] = twin
        wrapper.original_module = resized
        return
    layer: Any = getattr(wrapper, "token_adapter", wrapper)
    while isinstance(layer.base_layer, AdapterLayer):
        layer = layer.base_layer
    layer.base_layer = resized
    layer.site = site_of(resized)
    layer._plans.clear()
    for a in layer.adapters.values():
        a.site = layer.site
        if not isinstance(wrapper, TrainableTokensWrapper):
            _fit(a)


def _fit(a: Adapter) -> None:
    """Give an adapter the tensors that its layer needs now; what it has stays in the corner."""
    trained = {id(slot): p for slot, p in a.layer.parameters_of(a.name)}
    old = {key: trained.get(id(slot)) for key, slot in a.slots.items()}
    a.slots = a.method.slots(a.site, a.cfg)
    for key, slot in a.slots.items():
        tensor = old[key]
        if tensor is not None and tensor.shape != slot.shape:
            fresh = torch.empty(slot.shape, dtype=torch.float32, device="cpu")
            slot.init(fresh, torch.Generator().manual_seed(0))
            grown = fresh.to(tensor)
            _copy_corner(tensor, grown)
            tensor.data = grown


def _copy_corner(source: Tensor, target: Tensor) -> None:
    corner = tuple(slice(min(n, m)) for n, m in zip(source.shape, target.shape, strict=True))
    target[corner] = source[corner]

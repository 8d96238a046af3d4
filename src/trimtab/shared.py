"""What the layers of a model share: slots that are held once, made for an adapter when it is put in; and groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .held import Shared
from .layer import AdapterLayer, seeded
from .match import adapter_layers
from .method import Slot

if TYPE_CHECKING:
    from .inject import Mount, Request


def make_shared(model: nn.Module, request: "Request", mounts: Sequence["Mount"]) -> dict[str, Shared]:
    """The tensors all layers read, by slot name: the model's containers, or new ones, with this adapter's in them."""
    slots: dict[str, Slot] = {}
    for slot in (s for m in mounts for s in m.slots.values() if s.shared):
        before = slots.get(slot.place, slot)
        slots[slot.place] = replace(slot, shape=tuple(map(max, before.shape, slot.shape)))
    if not slots:
        return {}
    held = {k: m for layer in adapter_layers(model) for k, m in layer._modules.items() if isinstance(m, Shared)}
    device, dtype = mounts[0].site.device, mounts[0].site.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    starts: Mapping[str, Tensor] = {}
    if not (request.empty and all(slot.saved for slot in slots.values())):
        shapes = {place: slot.shape for place, slot in slots.items()}
        starts = request.method.shared(shapes, request.cfg, {m.path: m.site for m in mounts})
    for place, slot in slots.items():
        start = starts.get(place)
        if start is None:
            start = torch.empty(slot.shape, dtype=slot.dtype, device="cpu")
            slot.init(start, seeded(request.name, place))
        start = start.to(device if device.type != "meta" else "cpu", slot.dtype or dtype)  # rounded first, as in files
        start = start.float() if half and request.autocast and slot.dtype is None else start
        part = slot.part if slot.module else ""
        together = held.setdefault(slot.name, Shared())
        if slot.make and request.name not in together._modules:
            together.add_module(request.name, slot.make().train(model.training))
        together.put(request.name, part, start, slot.trainable)
    return held


def brings_shared(slots: Mapping[str, Slot]) -> bool:
    """Whether a file brings frozen tensors that layers share, from which other tensors may be derived."""
    return any(slot.shared and slot.saved and not slot.trainable for slot in slots.values())


def trained_together(model: nn.Module) -> dict[str, Shared]:
    """The containers of what layers share and train, by slot name."""
    held = {k: m for layer in adapter_layers(model) for k, m in layer._modules.items() if isinstance(m, Shared)}
    return {k: m for k, m in held.items() if any(True for _ in m.parameters())}


def join_groups(layer: AdapterLayer, name: str, groups: dict[tuple[str, str], nn.Parameter]) -> None:
    """Let a layer hold the tensors that others of its groups hold, by place and group, instead of its own."""
    for slot, parameter in list(layer.parameters_of(name)):
        if slot.group:
            owner, key = layer.holder(slot, name)
            owner._parameters[key] = groups.setdefault((slot.place, slot.group), parameter)

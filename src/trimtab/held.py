"""Where an adapter's tensors lie that are no ordinary parameters: shared by layers, made anew, or parts of modules."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from .layer import AdapterLayer
    from .method import Slot


class Held(nn.Module):
    """Tensors of a slot that is not an ordinary one, by adapter name: parameters, buffers in no state, or modules."""

    def put(self, name: str, part: str, value: Tensor, trainable: bool) -> None:
        """Hold a tensor under an adapter's name, or under a part of the module of that name."""
        owner, key = made(self, f"{name}.{part}") if part else (self, name)
        if trainable:
            owner.register_parameter(key, nn.Parameter(value))
        else:
            owner.register_buffer(key, value, persistent=False)


class Shared(Held):
    """A slot's tensors that all layers of a model read."""


def made(module: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The module that is to hold a part, whose name may lead through modules within, made where they lack."""
    *path, last = part.split(".")
    for step in path:
        if step not in module._modules:
            module.add_module(step, nn.Module())
        module = module._modules[step]  # type: ignore[assignment]
    return module, last


def holder_of(module: Any, part: str) -> tuple[Any, str]:
    """The module that holds a part, whose name may lead through modules within, and its name there."""
    *path, last = part.split(".")
    for step in path:
        module = module._modules[step]
    return module, last


def container(layer: nn.Module, key: str, kind: type[nn.Module]) -> Any:
    """The container of a layer's adapters' tensors of this name; made if there is none."""
    if key not in layer._modules:
        setattr(layer, key, kind())  # not add_module: it refuses the name of an option, which a layer answers to
    return layer._modules[key]


def hold(layer: "AdapterLayer", slot: "Slot", name: str, parameter: nn.Parameter) -> None:
    """Let a layer hold a parameter as an adapter's tensor."""
    held = container(layer, slot.name, nn.ModuleDict if slot.module else nn.ParameterDict)
    if slot.module:
        if name not in held._modules:
            plain = slot.part in ("weight", "bias")
            module = slot.make() if slot.make else layer.site.holder(slot.shape) if plain else nn.Module()
            held.add_module(name, module.train(layer.training))
        owner, key = made(held._modules[name], slot.part)
        owner.register_parameter(key, parameter)
    elif isinstance(held, nn.ParameterDict):
        held[name] = parameter
    else:  # a method that keeps modules under the same name was here first
        held.register_parameter(name, parameter)


def forget(held: nn.Module | None, name: str) -> None:
    """Drop what a container holds under an adapter's name, if it is there and holds anything."""
    if isinstance(held, nn.ParameterDict) and name in held:
        del held[name]
    elif held is not None:
        for kept in (held._parameters, held._buffers, held._modules):
            kept.pop(name, None)

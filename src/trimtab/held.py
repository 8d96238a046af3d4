"""Where an adapter's tensors lie that are no ordinary parameters: shared by layers, made anew, or parts of modules."""

from typing import Any

from torch import Tensor, nn


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


def forget(held: nn.Module | None, name: str) -> None:
    """Drop what a container holds under an adapter's name, if it is there and holds anything."""
    if isinstance(held, nn.ParameterDict) and name in held:
        del held[name]
    elif held is not None:
        for kept in (held._parameters, held._buffers, held._modules):
            kept.pop(name, None)

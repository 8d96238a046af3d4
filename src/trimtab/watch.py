"""Calls of a model as its adapters see them: what their layers have to know beforehand, and what they add afterwards.

Most methods look at nothing but their layer. One that does (a task's number, the place of a token, a term of the loss)
defines `Method.before` or `Method.after`; the base model then carries one hook for each, which a generation passes too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .match import adapter_layers
from .method import Method
from .route import Router

if TYPE_CHECKING:
    from .inject import Request
    from .layer import AdapterLayer


class Watch:
    """The hooks of one model: the methods that look at its calls, by adapter, with one layer that tells who acts."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.adapters: dict[str, tuple[Method, Any, AdapterLayer]] = {}
        self.handles: list[Any] = []
        self.inside = False

    def acting(self) -> list[tuple[str, Method, Any]]:
        """Name, method and configuration of each adapter that acts in the call in flight."""
        rows = self.router.rows
        found = []
        for name, (method, cfg, layer) in self.adapters.items():
            acts = name in layer.active if rows is None else name in rows
            if layer.enabled and acts and name not in layer.merged_adapters:
                found.append((name, method, cfg))
        return found

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: ask each method about the call."""
        if self.inside:  # a method that runs the model to find out
            return None
        self.inside, self.router.calls = True, {}
        kwargs = self.router.given | kwargs
        named = dict(zip(signature(model.forward).parameters, args, strict=False)) if args else {}
        try:
            self.router.calls = {n: m.before(model, n, cfg, named | kwargs) for n, m, cfg in self.acting()}
        finally:
            self.inside = False
        own = {a for method, _, _ in self.adapters.values() for a in method.arguments}
        return args, {k: v for k, v in kwargs.items() if k not in own}

    def after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook: let each method add to the output."""
        if self.inside:
            return None
        for name, method, cfg in self.acting():
            output = method.after(model, name, cfg, output)
        self.router.remember(output)
        return output


def watch(model: nn.Module, request: "Request", router: Router) -> None:
    """Let a method that looks at the calls of a model do so for a new adapter."""
    kind = type(request.method)
    if kind.before is Method.before and kind.after is Method.after and not kind.arguments:
        return
    seen: Watch = model.__dict__.setdefault("adapter_watch", Watch(router))
    layer = next(layer for layer in adapter_layers(model) if request.name in layer.adapters)
    seen.adapters[request.name] = (request.method, request.cfg, layer)
    if not seen.handles:
        seen.handles = [
            model.register_forward_pre_hook(seen.before, with_kwargs=True),
            model.register_forward_hook(seen.after),
        ]


def forget(model: nn.Module, name: str) -> None:
    """Look at calls no more for an adapter that is deleted."""
    if seen := model.__dict__.get("adapter_watch"):
        seen.adapters.pop(name, None)


def unwatch(model: nn.Module) -> None:
    """Take the hooks out."""
    if seen := model.__dict__.pop("adapter_watch", None):
        for handle in seen.handles:
            handle.remove()


def add_to_loss(model: nn.Module, output: Any, term: Callable[[], Tensor]) -> Any:
    """The model's output, in training with a term added to its loss, where it has computed one."""
    if model.training and isinstance(output, dict) and "loss" in output:
        output["loss"] = output["loss"] + term().to(output["loss"].device)
    return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, a model is in evaluation mode."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

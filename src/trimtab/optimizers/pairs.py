"""The pairs A, B of a model's LoRA adapters, and optimisers that change gradients by them before each step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..match import adapter_layers
from ..method import Adapter
from ..methods.lora import Lora

DTYPE = torch.float32


def pairs(model: nn.Module) -> Iterator[Any]:
    """The trained LoRA adapters of layers with one A (r, in) and one B (out, r), embeddings left out."""
    for layer in adapter_layers(model):
        for a in layer.adapters.values():
            if isinstance(a.method, Lora) and a.method.product and layer.site.kind != "embedding" and whole(a):
                yield a


def whole(a: Adapter) -> bool:
    """Whether an adapter is trained, and its ranks are not those of groups or experts side by side."""
    return a.B.requires_grad and a.A.shape[0] == a.B.shape[1] == a.cfg.r


def divided(g: Tensor, rows: Tensor, damping: float) -> Tensor:
    """G (R R^T + damping)^-1, for G (..., r) and R (r, n), in float32."""
    rows = rows.detach().to(DTYPE)
    gram = rows @ rows.T + damping * torch.eye(len(rows), device=rows.device)
    return torch.linalg.solve(gram, g.to(DTYPE).mT).mT.to(g.dtype)


def conditioned(
    optimizer_cls: type[Optimizer], parameters: Iterable[Tensor], change: Callable[[], None], **options: Any
) -> Optimizer:
    """An optimiser of this class that changes the gradients before each step."""

    class Conditioned(optimizer_cls):  # type: ignore[misc,valid-type]
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with torch.no_grad():
                change()
            super().step()
            return loss

    Conditioned.__name__ = Conditioned.__qualname__ = f"Conditioned{optimizer_cls.__name__}"
    return Conditioned(parameters, **options)

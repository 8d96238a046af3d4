"""Riemannian preconditioning (https://arxiv.org/abs/2402.02347): each factor's step is measured by the other.

G_A becomes (B^T B + d)^-1 G_A, and G_B becomes G_B (A A^T + d)^-1, before any optimiser sees them.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from .pairs import conditioned, divided, pairs


def create_riemannian_optimizer(
    model: nn.Module, optimizer_cls: type[Optimizer], *, lr: float, reg: float = 1e-2, **kwargs: Any
) -> Optimizer:
    """An optimiser of this class that preconditions the gradients of LoRA's A and B, embeddings left out.

    Args:
        model: a model with LoRA adapters.
        optimizer_cls: the class of the optimiser, as `torch.optim.AdamW`.
        lr: learning rate.
        reg: d, which keeps the inverse finite.
        kwargs: options of the optimiser.

    Raises `ConfigError` for a `reg` that is not positive.
    """
    if reg <= 0:
        raise ConfigError(f"`reg`={reg} must be above 0: B begins as zero, and B^T B has no inverse then")

    def change() -> None:
        for a in pairs(model):
            both = [(a.A, a.B.flatten(1).T), (a.B, a.A.flatten(1))]
            for p, rows in both:
                if p.grad is not None:
                    g = p.grad.flatten(1)
                    p.grad.copy_((divided(g.T, rows, reg).T if p is a.A else divided(g, rows, reg)).view_as(p))

    trained = [p for p in model.parameters() if p.requires_grad]
    return conditioned(optimizer_cls, trained, change, lr=lr, **kwargs)

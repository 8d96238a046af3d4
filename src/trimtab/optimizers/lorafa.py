"""LoRA-FA (https://arxiv.org/abs/2308.03303): A stays as it began, and B follows the gradient of the weight.

The step of B that brings s B A nearest to the step of full fine-tuning is along G_B (A A^T)^-1 / s^2. Frozen, A needs
no gradient, so the layer's input need not be kept.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from .pairs import conditioned, divided, pairs

DAMPING = 1e-8


def create_lorafa_optimizer(
    model: nn.Module,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> Optimizer:
    """AdamW for LoRA whose A is frozen, which it does.

    Args:
        model: a model with LoRA adapters.
        r: kept for the interface, like `lora_alpha`: each layer's own rank and scale are taken.
        lora_alpha: see `r`.
        lr: learning rate.
        weight_decay: of AdamW.
        use_rslora: if given, it has to be that of the adapters.

    Raises `ConfigError` when it is not, or when there is nothing to train so.
    """
    found = list(pairs(model))
    if not found:
        raise ConfigError("the model has no trained LoRA adapters whose A could be frozen")
    if use_rslora is not None and any(a.cfg.use_rslora != use_rslora for a in found):
        raise ConfigError(f"`use_rslora`={use_rslora} is not what the adapters' LoraConfig says; set it there")
    for a in found:
        a.A.requires_grad = False

    def change() -> None:
        for a in found:
            if a.B.grad is not None:
                flat = divided(a.B.grad.flatten(1), a.A.flatten(1), DAMPING)
                a.B.grad.copy_((flat / a.scale**2).view_as(a.B))

    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    return conditioned(torch.optim.AdamW, trained, change, lr=lr, weight_decay=weight_decay, eps=1e-6)

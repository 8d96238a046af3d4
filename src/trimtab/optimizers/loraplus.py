"""LoRA+ (https://arxiv.org/abs/2402.12354): B learns faster than A, by a ratio of their learning rates."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..match import adapter_layers


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: type[Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Optimizer:
    """An optimiser with four groups of parameters: A; embeddings; B and vectors; and of those what has no weight decay.

    Args:
        model: a model with LoRA adapters.
        optimizer_cls: the class of the optimiser.
        lr: learning rate of A, and of matrices that are trained in full.
        loraplus_lr_ratio: how many times that B and vectors have; the paper advises 16.
        kwargs: options of the optimiser; besides, `loraplus_lr_embedding`, the rate of adapters on embeddings (1e-6),
            and `loraplus_weight_decay`, which is `weight_decay` or 0 if not given. Biases and normalisations decay not.

    Raises `ConfigError` for a ratio that is not positive.
    """
    if loraplus_lr_ratio <= 0:
        raise ConfigError(f"`loraplus_lr_ratio`={loraplus_lr_ratio} must be above 0, and makes sense from 1 on")
    of_embeddings = kwargs.pop("loraplus_lr_embedding", 1e-6)
    decay = kwargs.pop("loraplus_weight_decay", kwargs.get("weight_decay", 0.0))
    adapters = [(layer, a) for layer in adapter_layers(model) for a in layer.adapters.values()]
    embedded = {id(a.tensor(key)) for layer, a in adapters if layer.site.kind == "embedding" for key in a.slots}
    ups = {id(a.tensor("B")) for _, a in adapters if a.has("B")}
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, p in model.named_parameters():
        if p.requires_grad:
            plain = id(p) in norms or name.endswith("bias")
            fast = id(p) in ups or p.dim() == 1
            groups[1 if id(p) in embedded else 0 if not fast else 3 if plain else 2].append(p)
    rates = (lr, of_embeddings, lr * loraplus_lr_ratio, lr * loraplus_lr_ratio)
    described = [
        {"params": params, "lr": rate, "weight_decay": wd}
        for params, rate, wd in zip(groups, rates, (decay, decay, decay, 0.0), strict=True)
    ]
    return optimizer_cls(described, lr=lr, **kwargs)  # type: ignore[call-arg]

"""KaSA (https://arxiv.org/abs/2412.06071), a variant of LoRA: W' = W_k + s B diag(d) A.

W_k is W without its r smallest singular values, which the base loses for good; d holds r singular values to learn. In
training the loss grows by beta |d|^2 + gamma (|B^T B - I| + |A A^T - I|) of each layer (equations 9 to 11).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..match import adapter_layers
from ..method import Adapter, Slot, normal
from ..sites import Site
from ..watch import add_to_loss
from .lora import Lora, LoraConfig
from .options import Options


@dataclass(kw_only=True)
class KasaConfig(Options, field="kasa_config"):
    """The weights of what is added to the loss."""

    beta: float = 1e-4  # of the squared singular values
    gamma: float = 1e-3  # of how far A and B are from orthonormal

    def mistakes(self) -> list[str]:
        given = {"beta": self.beta, "gamma": self.gamma}
        return [f"`{k}`={v} must not be negative" for k, v in given.items() if v < 0]


class Kasa(Lora):
    """See the head of this file."""

    product = ()
    no_start = "KaSA's base loses the smallest singular values, and its A and B begin as LoRA's"

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.kasa_config is not None

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        if getattr(site, "groups", 1) > 1:
            raise ConfigError("the weight of a grouped convolution is no single matrix with singular values")
        if cfg.r >= (most := min(site.matrix[-2:])):
            raise ConfigError(f"without its `r`={cfg.r} smallest of {most} singular values nothing is left of W")
        slots = super().slots(site, cfg)
        return slots | {"d": Slot(name="lora_diag", shape=slots["A"].shape[:1], init=normal())}

    def changes_base(self, cfg: LoraConfig) -> bool:
        return True

    def start(self, a: Adapter) -> None:
        """Take the smallest singular values from the base; nothing changes where that is done already."""
        w = a.site.weight().detach()
        w = w.to(torch.promote_types(w.dtype, torch.float32))
        u, s, v = torch.linalg.svd(w.reshape(-1, *a.site.matrix[-2:]), full_matrices=False)
        k = s.shape[-1] - a.cfg.r
        a.site.write((u[..., :k] * s[..., None, :k] @ v[..., :k, :]).view(w.shape))

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        return a.A * a.d.view(-1, *(1 for _ in a.A.shape[1:])), a.B

    def after(self, model: nn.Module, name: str, cfg: LoraConfig, output: Any) -> Any:
        return add_to_loss(model, output, lambda: penalty(model, name))


def penalty(model: nn.Module, name: str) -> Tensor:
    """What an adapter's layers add to the loss."""
    found = [layer.adapters[name] for layer in adapter_layers(model) if name in layer.adapters]
    terms = []
    for a in found:
        options = a.cfg.kasa_config
        rows = a.B.flatten(1).T, a.A.flatten(1)
        gaps = [torch.linalg.matrix_norm(t @ t.T - torch.eye(len(t), device=t.device)) for t in rows]
        terms.append(options.beta * a.d.square().sum() + options.gamma * torch.stack(gaps).sum())
    return torch.stack([t.to(terms[0].device) for t in terms]).sum()

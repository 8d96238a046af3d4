"""MonteCLoRA (https://arxiv.org/abs/2411.04358), a variant of LoRA that is trained around random samples of A.

In training, row i of A gains eta sqrt(v_i) sum_k p_k z_k, where z_k is normal; v_i = exp(2 s_i) c_i with c_i from chi^2
of r degrees, the diagonal of a Wishart draw; and p is from the Dirichlet distribution with parameters exp(e), as drawn
by its logistic-normal approximation. s and e are learnt, and the loss grows by how far all these are from their priors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..match import adapter_layers
from ..method import Slot, constant
from ..sites import Site
from ..watch import add_to_loss
from .lora import Lora, LoraConfig
from .options import Options

SAMPLER = "lora_monteclora_sampler"


@dataclass(kw_only=True)
class MontecloraConfig(Options, field="monteclora_config"):
    """How samples are drawn, and what holds them to their priors."""

    num_samples: int = 8  # N, the normals that are mixed
    use_entropy: bool = False  # let the loss grow with sum_k p_k^2 too, which keeps p from one sample alone
    dirichlet_prior: float = 0.1  # parameter of the prior of p
    sample_scaler: float = 1e-4  # eta
    kl_loss_weight: float = 1e-5  # weight of the divergences
    buffer_size: int = 150  # kept for the file format: nothing is drawn in advance

    def mistakes(self) -> list[str]:
        checks = {
            f"`num_samples`={self.num_samples} must be at least 1": self.num_samples > 0,
            f"`dirichlet_prior`={self.dirichlet_prior} must be above 0": self.dirichlet_prior > 0,
        }
        return [text for text, fine in checks.items() if not fine]


class Monteclora(Lora):
    """See the head of this file. The slots `v` and `p` are there for the file format, as before a first draw."""

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.monteclora_config is not None

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        slots, n = super().slots(site, cfg), cfg.monteclora_config.num_samples
        rows = slots["A"].shape[0]
        return slots | {
            "s": Slot(name=SAMPLER, part="std_prior", shape=(rows,), init=uniform, module=True),
            "e": Slot(name=SAMPLER, part="expert_weights_prior", shape=(n,), init=uniform, module=True),
            "v": fixed("gaussian_var_prior", torch.eye(rows, device="cpu")),
            "p": fixed("expert_weights", torch.full((n,), 1 / n, device="cpu")),
        }

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        down, up = super().factors(a)
        if not a.training:
            return down, up
        v, p = draw(a)
        deviation = a.cfg.monteclora_config.sample_scaler * p.norm() * v.sqrt()  # of a sum of normals with weights p
        return down + (deviation.view(-1, *(1 for _ in down.shape[1:])) * torch.randn_like(down)).to(down.dtype), up

    def after(self, model: nn.Module, name: str, cfg: LoraConfig, output: Any) -> Any:
        return add_to_loss(model, output, lambda: penalty(model, name))


class MontecloraTrainerMixin:
    """For a Trainer, in code that was written for PEFT; it adds nothing, because the model's loss has it all."""


def draw(a: Any) -> tuple[Tensor, Tensor]:
    """A draw of v (rows of A,) and p (N,), through which s and e have gradients."""
    s, alpha = a.s.float(), a.e.float().exp()
    v = (2 * s).exp() * torch.randn(a.cfg.r, len(s), device=s.device).square().sum(0)
    mean = alpha.log() - alpha.log().mean()
    spread = (1 - 2 / len(alpha)) / alpha + alpha.reciprocal().sum() / len(alpha) ** 2
    return v, (mean + spread.sqrt() * torch.randn_like(alpha)).softmax(0)


def divergence(v: Tensor) -> Tensor:
    """Twice that of the normal distribution with variances v from the standard one."""
    return (v - 1 - v.log()).sum()


def dirichlet_divergence(alpha: Tensor, prior: float) -> Tensor:
    """That of the Dirichlet distribution with parameters alpha from the one with `prior` everywhere."""
    beta = torch.full_like(alpha, prior)
    constants = [t.sum().lgamma() - t.lgamma().sum() for t in (alpha, beta)]
    return constants[0] - constants[1] + ((alpha - beta) * (alpha.digamma() - alpha.sum().digamma())).sum()


def penalty(model: nn.Module, name: str) -> Tensor:
    """What an adapter adds to the loss: the mean over its layers."""
    terms = []
    for a in (layer.adapters[name] for layer in adapter_layers(model) if name in layer.adapters):
        options = a.cfg.monteclora_config
        v, p = draw(a)
        wishart, normals = a.cfg.r * divergence((2 * a.s.float()).exp()) / 2, len(p) * divergence(v) / 2
        total = wishart + normals + dirichlet_divergence(a.e.float().exp(), options.dirichlet_prior)
        terms.append(options.kl_loss_weight * total + (p.square().sum() if options.use_entropy else 0))
    return torch.stack([t.to(terms[0].device) for t in terms]).mean()


def fixed(part: str, value: Tensor) -> Slot:
    """A tensor of the sampler that is not trained."""
    return Slot(name=SAMPLER, part=part, shape=tuple(value.shape), init=constant(value), module=True, trainable=False)


def uniform(t: Tensor, generator: Generator) -> object:
    """Start anywhere between 0 and 1."""
    return t.uniform_(generator=generator)

"""Poly: https://arxiv.org/abs/2202.13914, and with several splits MHR: https://arxiv.org/abs/2211.03831

y' = y + (x A) B / r, where A = sum_k w_k A_k and B = sum_k w_k B_k mix n skills by the weights of the row's task:
w = sigmoid(logits), normalised over the skills. Every split of the input features, and of the output features, has
weights of its own. In training, w is sampled from a relaxed Bernoulli distribution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.distributions import RelaxedBernoulli

from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..method import Method, Slot, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class PolyConfig(AdapterConfig, kind="POLY"):
    """Polytropon: several tasks share an inventory of LoRA skills, and learn which of them they use."""

    positive = ("r", "n_tasks", "n_skills", "n_splits")

    r: int = 8  # rank of each skill
    init_weights: bool = True  # B starts at zero, without effect; False: random
    poly_type: Literal["poly"] = "poly"  # kept for the file format; there is one type
    n_tasks: int = 1  # how many tasks `task_ids` tells apart
    n_skills: int = 4  # how many skills there are
    n_splits: int = 1  # parts of the features that choose their skills apart

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.poly_type != "poly":
            wrong.append(f"`poly_type`={self.poly_type!r} is unknown; choose 'poly'")
        return wrong


def spread(t: Tensor, generator: Generator) -> object:
    """Uniform within 1 / sqrt(input features), of A_k (splits, skills, in / splits, r) and B_k alike."""
    bound = (t.shape[0] * t.shape[2]) ** -0.5
    return t.uniform_(-bound, bound, generator=generator)


def nearly_even(t: Tensor, generator: Generator) -> object:
    """Logits close to zero, so that every skill begins with the same weight."""
    return t.uniform_(-1e-3, 1e-3, generator=generator)


class Poly(Method):
    """See the head of this file."""

    name, prefix, defaults = "POLY", "poly_", LORA_TARGETS
    depends, arguments = "the task of a row", ("task_ids",)

    def slots(self, site: Site, cfg: PolyConfig) -> dict[str, Slot]:
        if site.kind != "linear":
            raise ConfigError(f"skills are mixed row by row, which a {site.kind} layer cannot do")
        if site.inp % cfg.n_splits or site.out % cfg.n_splits:
            raise ConfigError(f"`n_splits`={cfg.n_splits} must divide {site.inp} input and {site.out} output features")
        many = (cfg.n_splits, cfg.n_skills)
        down, up = (*many, site.inp // cfg.n_splits, cfg.r), (*many, cfg.r, site.out // cfg.n_splits)
        logits = (cfg.n_tasks, cfg.n_splits * cfg.n_skills)
        return {
            "A": Slot(name="poly_lora_A", shape=down, init=spread),
            "B": Slot(name="poly_lora_B", shape=up, init=zeros if cfg.init_weights else spread),
            "logits": Slot(name="poly_router", shape=logits, init=nearly_even, module=True, part="module_logits"),
        }

    def before(self, model: nn.Module, name: str, cfg: PolyConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        call = super().before(model, name, cfg, kwargs)
        tasks = call.get("task_ids")
        if tasks is not None and len(tasks) and (int(tasks.max()) >= cfg.n_tasks or int(tasks.min()) < 0):
            raise AdapterError(f"`task_ids`={tasks.tolist()}: {name!r} knows the tasks 0 to {cfg.n_tasks - 1}")
        return call

    def scaling(self, site: Site, cfg: PolyConfig) -> float:
        return 1 / cfg.r

    def weights(self, a: Any) -> Tensor:
        """The share of each skill, (rows, splits, skills)."""
        tasks = a.call.get("task_ids")
        if tasks is None:
            raise AdapterError(f"{a.name!r} needs `task_ids`, one task for each row of the batch, in the model's call")
        logits = a.logits[a.rows(tasks).to(a.logits.device)].view(-1, a.cfg.n_splits, a.cfg.n_skills)
        shares = (
            RelaxedBernoulli(torch.ones((), device=logits.device), logits=logits).rsample()
            if a.training
            else logits.sigmoid()
        )
        return shares / (shares.sum(dim=-1, keepdim=True) + 1e-12)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        w = self.weights(a).to(x.dtype)
        down = torch.einsum("bpk,pkir->bpir", w, a.A).flatten(1, 2)
        up = torch.einsum("bpk,pkro->brpo", w, a.B).flatten(2)
        rows = x.reshape(len(w), -1, x.shape[-1])
        return y + a.scale * (rows @ down @ up).view(y.shape)

"""AdaLoRA: https://arxiv.org/abs/2303.10512

W' = W + s B diag(E) A, with A (r, in), B (out, r), E (r, 1) and s = alpha / init_r: an update in the form of a singular
value decomposition, whose A and B are drawn towards orthogonality by a term of the loss. All layers begin with `init_r`
triplets (a row of A, an entry of E, a column of B); in training, those that matter least to the loss lose their E, over
all layers together, until `target_r` a layer are left on average.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import AdapterError, warn
from ..form import Form, entries
from ..match import adapter_layers
from ..method import Adapter, Method, Slot, constant, normal, zeros
from ..sites import Site
from .lora import Lora, LoraConfig
from .targets import ADALORA_TARGETS

CALL = "call `model.base_model.update_and_allocate(step)` after each backward pass, before gradients are cleared"


@dataclass(kw_only=True)
class AdaLoraConfig(LoraConfig, kind="ADALORA"):
    """LoRA that finds its ranks in training, told of each step by `model.base_model.update_and_allocate(step)`."""

    own_bias: ClassVar[str] = "lora_only"

    target_r: int = 8  # triplets left in the end, a layer on average
    init_r: int = 12  # triplets of each layer at first
    tinit: int = 0  # steps before the first cut
    tfinal: int = 0  # steps after the last cut
    deltaT: int = 1  # steps from cut to cut
    beta1: float = 0.85  # how much of the past stays in an entry's sensitivity
    beta2: float = 0.85  # how much of the past stays in its variation
    orth_reg_weight: float = 0.5  # weight in the loss of A and B not being orthogonal
    total_step: int | None = None  # steps of the whole training
    rank_pattern: dict[str, Any] | None = None  # which triplets of each layer are left; found in training

    def __post_init__(self) -> None:
        self.sensitivity: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # mean and variation, by layer and slot
        self.trained = self.settled = False  # whether there was a training step; whether the last cut is done
        self.held = torch.ones(max(self.init_r, 0), dtype=torch.bool)  # of one layer: which triplets its tensors are
        self.left: Tensor | None = None  # of one layer: which of those a cut has left
        super().__post_init__()
        if self.r != LoraConfig.r:
            warn(f"`r`={self.r} has no meaning in AdaLoRA; `init_r` and `target_r` tell its ranks")

    def mistakes(self) -> list[str]:
        spare = [f"`{k}`" for k in ("use_rslora", "lora_bias", "alpha_pattern") if getattr(self, k)]
        spare += [type(v).__name__ for v in Lora.variants if v.wanted(self)]
        steps = (self.total_step or 0) - self.tinit - self.tfinal
        checks = {
            f"`target_r`={self.target_r} must be at least 1, and at most `init_r`={self.init_r}": self.inference_mode
            or 0 < self.target_r <= self.init_r,
            f"`total_step`={self.total_step} must be the number of training steps, above `tinit`={self.tinit} and "
            f"`tfinal`={self.tfinal} together": steps > 0,
            f"`init_lora_weights`={self.init_lora_weights!r} must be True or False": self.init_lora_weights in (0, 1),
            f"`deltaT`={self.deltaT} must be at least 1": self.deltaT > 0,
            f"`beta1`={self.beta1} and `beta2`={self.beta2} must be in (0, 1)": 0 < self.beta1 < 1 > self.beta2 > 0,
        }
        wrong = [f"{k} is an option of LoRA that AdaLoRA has not" for k in spare]
        return super().mistakes() + wrong + [text for text, fine in checks.items() if not fine]

    def at(self, path: str) -> Self:
        here = copy(self)
        if (pattern := (self.rank_pattern or {}).get(f"{path}.lora_E")) is not None:
            here.held = torch.tensor(pattern, dtype=torch.bool)
        return here

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        if self.trained and not self.sensitivity:
            warn(f"AdaLoRA was trained, and not told of the steps, so that no rank was cut: {CALL}")
        super().save_pretrained(save_directory, **kwargs)


class AdaLora(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "ADALORA", "lora_", "lora_dropout", ADALORA_TARGETS

    def slots(self, site: Site, cfg: AdaLoraConfig) -> dict[str, Slot]:
        *experts, out, columns = site.matrix
        r = int(cfg.held.sum())
        start, e = (normal(0.02), zeros) if cfg.init_lora_weights else (normal(), normal())
        n = constant(cfg.init_r)
        return {
            "A": Slot(name="lora_A", shape=(*experts, r, columns), init=start),
            "B": Slot(name="lora_B", shape=(*experts, out, r), init=start),
            "E": Slot(name="lora_E", shape=(*experts, r, 1), init=e),
            "n": Slot(name="ranknum", shape=(1,), init=n, trainable=False, file=""),
        }

    def scaling(self, site: Site, cfg: AdaLoraConfig) -> float:
        return cfg.lora_alpha if cfg.lora_alpha > 0 else cfg.init_r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, (scaled(a) * a.B * a.E.mT @ a.A).view(a.site.shape))

    def direct(self, site: Site, cfg: AdaLoraConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp and bool(cfg.held.any())

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        point = tuple(1 for _ in kernel)
        down = a.site.op(a.drop(x), a.A.reshape(-1, a.site.inp, *kernel))
        up = a.site.up(a.E.view(-1, *point) * down, a.B.reshape(*a.B.shape, *point))
        return y + scaled(a) * up

    def after(self, model: nn.Module, name: str, cfg: AdaLoraConfig, output: Any) -> Any:
        """In training, add to the loss how far A and B are from orthogonal."""
        cfg.trained |= model.training
        if model.training and isinstance(output, dict) and "loss" in output:
            found = [layer.adapters[name] for layer in adapter_layers(model) if name in layer.adapters]
            gaps = [gap(t).flatten().to(output["loss"].device) for a in found for t in (a.A, a.B.mT)]
            output["loss"] = output["loss"] + cfg.orth_reg_weight * torch.cat(gaps).mean()
        return output

    @torch.no_grad()
    def after_step(self, layers: Sequence[Any], name: str, cfg: AdaLoraConfig, step: int) -> None:
        """Cut the triplets beyond the step's budget (section 3.3); those of the last cut stay cut."""
        found = [layer.adapters[name] for layer in layers]
        end = (cfg.total_step or 0) - cfg.tfinal
        if step < end or not cfg.sensitivity:
            for a in found:
                look(a, cfg)
            if step < end and (step <= cfg.tinit or step % cfg.deltaT):
                return
        if not cfg.settled:
            scores = torch.cat([score(a, cfg).flatten().to(found[0].E.device) for a in found])
            first, last = (r * sum(math.prod(a.site.matrix[:-2]) for a in found) for r in (cfg.init_r, cfg.target_r))
            budget = int((first - last) * max(1 - (step - cfg.tinit) / (end - cfg.tinit), 0) ** 3 + last)
            left = torch.zeros_like(scores, dtype=torch.bool)
            left[scores.topk(min(budget, len(left))).indices] = True
            for a, part in zip(found, left.split([a.E.numel() for a in found]), strict=True):
                a.cfg.left = part.view_as(a.E).to(a.E.device)
            alone = [a for a in found if a.E.dim() == 2]  # experts keep what is cut: their ranks differ in one tensor
            cfg.rank_pattern = {f"{a.layer.path}.lora_E": all_left(a.cfg) for a in alone}
            cfg.settled = step >= end
        for a in found:
            a.E.masked_fill_(~a.cfg.left, 0)

    def in_file(self, a: Adapter) -> Mapping[str, Form]:
        """What the cuts have left."""
        if a.cfg.left is None or a.cfg.left.dim() > 2:
            return {}
        left = a.cfg.left.nonzero()[:, 0]
        return {"A": entries(0, left), "B": entries(1, left), "E": entries(0, left)}


def scaled(a: Any) -> Tensor:
    """The factor before the update; what is added to `ranknum` is what PEFT's files mean."""
    return (a.scale / (a.n + 1e-5)).to(a.dtype)


def all_left(cfg: AdaLoraConfig) -> list[bool]:
    """Which of a layer's `init_r` triplets are left."""
    return cfg.held.masked_scatter(cfg.held, cfg.left.flatten().cpu()).tolist()  # type: ignore[union-attr]


def gap(rows: Tensor) -> Tensor:
    """How far the rows (..., r, n) are from orthonormal: the Frobenius norm of A A^T - I."""
    gram = rows @ rows.mT
    return torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype))


def look(a: Adapter, cfg: AdaLoraConfig) -> None:
    """Smooth the sensitivity of each entry to the loss, and how much that varies (equations 9 to 11)."""
    for key in ("A", "B", "E"):
        p: Any = a.tensor(key)
        if p.grad is None:
            raise AdapterError(f"{a.layer.path!r} has no gradients of {a.name!r}: {CALL}")
        now, zero, where = (p * p.grad).abs(), torch.zeros_like(p), (a.layer.path, key)
        mean, variation = cfg.sensitivity.get(where, (zero, zero))
        mean = cfg.beta1 * mean + (1 - cfg.beta1) * now
        cfg.sensitivity[where] = mean, cfg.beta2 * variation + (1 - cfg.beta2) * (now - mean).abs()


def score(a: Adapter, cfg: AdaLoraConfig) -> Tensor:
    """How much each triplet matters to the loss (equation 8)."""
    held = (cfg.sensitivity[a.layer.path, key] for key in ("E", "A", "B"))
    e, rows, columns = (mean * variation for mean, variation in held)
    return e.squeeze(-1) + rows.mean(-1) + columns.mean(-2)

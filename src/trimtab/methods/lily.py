"""Lily: https://arxiv.org/abs/2407.09946

y' = y + s (sum_i p_i B_i) A x, where A (r, in) is shared by layers of one name next to each other, and the B_i (out, r)
by all layers of that name. Each layer has a router R (n, r) of its own: p = softmax(R A x), averaged over the positions
and rows that the layer is given.
"""

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..match import ends_with
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class LilyConfig(AdapterConfig, kind="LILY"):
    """Low-rank adapters that layers share: A by neighbours, and a mixture of Bs by all."""

    positive = ("r", "stride_A")

    r: int = 32  # rank; higher than LoRA's, since there are fewer A and B
    stride_A: int = 1  # layers of one name, in their order, that share an A
    num_B: int = 2  # n, how many B all layers of one name share
    scaling: float = 1.0  # s
    init_weights: bool = True  # B starts at zero, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.num_B < 2:
            wrong.append(f"`num_B`={self.num_B} must be at least 2: with one, the router has nothing to choose")
        return wrong

    def at(self, path: str) -> Self:
        here = copy(super().at(path))
        vars(here)["neighbours"], vars(here)["alike"] = vars(self)["groups"][path]
        return here


class Lily(Method):
    """See the head of this file."""

    name, prefix, defaults, depends = "LILY", "lily_", LORA_TARGETS, "the input"

    def prepare(self, cfg: LilyConfig, sites: Mapping[str, Site]) -> None:
        """Note by path which layers share A, and which B: those of one name (as the targets say it) and shape."""
        names = cfg.target_modules if isinstance(cfg.target_modules, list) else []
        groups: dict[str, tuple[str, str]] = {}
        seen = Counter[str]()
        for path, site in sites.items():
            name = max((n for n in names if ends_with(path, [n])), key=len, default=path.rpartition(".")[2])
            alike = f"{name} {site.shape}"
            groups[path] = f"{alike} {seen[alike] // cfg.stride_A}", alike
            seen[alike] += 1
        vars(cfg)["groups"] = groups

    def slots(self, site: Site, cfg: LilyConfig) -> dict[str, Slot]:
        out, columns = site.matrix
        start, facts = zeros if cfg.init_weights else kaiming, vars(cfg)
        a, b = (cfg.r, columns), (cfg.num_B * cfg.r, out)
        return {
            "A": Slot(name="lily_A", shape=a, init=kaiming, module=True, group=facts["neighbours"]),
            "B": Slot(name="lily_B", shape=b, init=start, module=True, group=facts["alike"]),
            "R": Slot(name="lily_router", shape=(cfg.num_B, cfg.r), init=kaiming, module=True),
        }

    def scaling(self, site: Site, cfg: LilyConfig) -> float:
        return cfg.scaling

    def direct(self, site: Site, cfg: LilyConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        point, features = tuple(1 for _ in kernel), -1 - len(kernel)
        h = a.site.op(x, a.A.view(-1, a.site.inp, *kernel))
        p = a.site.up(h, a.R.view(*a.R.shape, *point)).softmax(dim=features).movedim(features, 0).flatten(1).mean(dim=1)
        b = torch.einsum("n,nro->or", p, a.B.view(len(p), -1, a.site.out).to(p.dtype))
        return torch.add(y, a.site.up(h, b.to(h.dtype).view(*b.shape, *point)), alpha=a.scale)

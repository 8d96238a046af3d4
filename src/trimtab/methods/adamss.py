"""AdaMSS: https://openreview.net/forum?id=8ZdWmpYxT0

[W b] = U S V by its r largest singular values, nearly; K-means over the rows of U splits the outputs into subspaces.
Each has a product of its own: rows k of [W' b'] are [W b]_k + B_k A_k V, with A_k (r_k, r) and B_k (rows, r_k) trained
and V frozen. ASA (`asa.py`) ends the training of those that matter least. The kernel of a convolution is flattened into
`in`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Method, Slot, constant, normal, zeros
from ..sites import Site
from .asa import Subspace, allocate
from .kmeans import kmeans
from .targets import LORA_TARGETS

CLUSTERS_SEED = 123456789  # files of PEFT rely on it, whatever `random_seed` is
START = {"orthogonal": zeros, None: normal(0.02)}


@dataclass(kw_only=True)
class AdamssConfig(AdapterConfig, kind="ADAMSS"):
    """Adaptive multi-subspace approach: small products, each for a cluster of outputs; the least of them pruned."""

    positive = ("r", "num_subspaces", "subspace_rank")

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 100  # singular directions of the weight that subspaces are built on, at most all
    num_subspaces: int = 5  # clusters of a layer's outputs, at most as many as it has outputs
    subspace_rank: int = 1  # rank of a subspace's product, at most its outputs
    init_weights: Literal["orthogonal"] | None = "orthogonal"  # B starts at zero, without effect; None: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    use_asa: bool = False  # stop training subspaces by the schedule below, in `after_step`
    asa_target_subspaces: int = 50  # how many of all layers' subspaces are trained in the end
    init_warmup: int = 50  # step until which all are trained, and from which their importance is observed
    final_warmup: int = 1000  # step by which the target is reached
    mask_interval: int = 100  # steps between decisions
    asa_importance_beta: float = 0.85  # how much a mean importance keeps of its past
    asa_uncertainty_beta: float = 0.85  # how much a mean deviation from it does
    asa_schedule_exponent: float = 3.0  # above 1, more is stopped early than late
    use_dynamic_rank: bool = False  # ranks by singular values, `subspace_rank` being the most
    svd_threshold: float = 0.1  # share of the largest squared singular value that one must exceed to count
    random_seed: int = 0  # seed of the decomposition

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.use_dynamic_rank:
            wrong += self.out_of_bounds((), ["svd_threshold"])
        if self.use_asa:
            asked = ["asa_target_subspaces", "mask_interval"], ["asa_importance_beta", "asa_uncertainty_beta"]
            wrong += self.out_of_bounds(*asked)
            if not 0 <= self.init_warmup < self.final_warmup:
                wrong.append(f"`init_warmup`={self.init_warmup} must be in [0, `final_warmup`={self.final_warmup})")
            if self.asa_schedule_exponent <= 0:
                wrong.append(f"`asa_schedule_exponent`={self.asa_schedule_exponent} must be above 0")
        if self.init_weights not in START:
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose 'orthogonal' or None")
        return wrong


class Adamss(Method):
    """See the head of this file."""

    name, prefix, defaults = "ADAMSS", "adamss_", LORA_TARGETS | {"vit": ["query", "value"]}

    def slots(self, site: Site, cfg: AdamssConfig) -> dict[str, Slot]:
        u, v = decomposed(site, cfg)
        clusters = kmeans(u, cfg.num_subspaces, CLUSTERS_SEED)
        place = torch.cat(clusters).argsort()  # of each output, among the outputs of all subspaces in turn
        slots = {"V": Slot(name="adamss_newB", shape=tuple(v.shape), init=constant(v), trainable=False)}
        index: dict[str, Any] = {"dtype": place.dtype, "trainable": False, "kept": False, "signs": 0}
        slots["place"] = Slot(name="adamss_place", shape=(site.out,), init=constant(place), **index)
        for k, rows in enumerate(clusters):
            _, s, right = torch.linalg.svd(u[rows], full_matrices=False)
            count = int((s.square() > cfg.svd_threshold * s[0].square()).sum()) if cfg.use_dynamic_rank else len(s)
            rank = max(1, min(cfg.subspace_rank, count))
            a, b = constant(right[:rank].clone()), START[cfg.init_weights]
            slots[f"A{k}"] = Slot(name="adamss_A", part=str(k), shape=(rank, u.shape[1]), init=a, module=True)
            slots[f"B{k}"] = Slot(name="adamss_B", part=str(k), shape=(len(rows), rank), init=b, module=True)
        return slots

    def derive(self, a: Adapter) -> None:
        """Let go of the V that the slot began with, which the layer holds now."""
        a.slots["V"].init = zeros

    def up(self, a: Any) -> Tensor:
        """The products B_k A_k with their rows in place, (out, r)."""
        return torch.cat([a.tensor(f"B{k}") @ a.tensor(f"A{k}") for k in range(subspaces(a))])[a.place]

    def weight(self, w: Tensor, a: Any) -> Tensor:
        columns = a.site.matrix[1]
        return a.site.add(w, (self.up(a) @ a.V[:, :columns]).view(a.site.shape))

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return b if b is None or a.site.bias is None else b + self.up(a) @ a.V[:, -1]

    def direct(self, site: Site, cfg: AdamssConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel, up, columns = a.site.shape[2:], self.up(a), a.site.matrix[1]
        point = tuple(1 for _ in kernel)
        h = a.site.op(x, a.V[:, :columns].view(-1, a.site.inp, *kernel))
        if a.site.bias is not None:
            h = h + a.V[:, -1].view(-1, *point)
        return y + a.site.up(h, up.view(*up.shape, *point))

    def after_step(self, layers: Sequence[Any], name: str, cfg: AdamssConfig, step: int) -> None:
        if cfg.use_asa:
            adapters = [layer.adapters[name] for layer in layers]
            allocate([Subspace(a, k) for a in adapters for k in range(subspaces(a))], cfg, step)


def subspaces(a: Any) -> int:
    """How many subspaces a layer has."""
    return sum(key.startswith("A") for key in a.slots)


def decomposed(site: Site, cfg: AdamssConfig) -> tuple[Tensor, Tensor]:
    """U (out, r) and V (r, in), or (r, in + 1) where the layer has a bias: the same for the same weight and seed."""
    if site.device.type == "meta":
        raise ConfigError("the weight has no values yet (meta device), and subspaces are made from them")
    w = site.weight().detach().to("cpu", torch.float32).reshape(site.matrix)
    if site.bias is not None:
        w = torch.cat([w, site.bias.detach().to(w).unsqueeze(1)], dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.random_seed)
        u, _, v = torch.svd_lowrank(w, q=min(cfg.r, *w.shape), niter=2)
    return u, v.T.contiguous()

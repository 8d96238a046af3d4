"""Several adapters into one: their updates added up, cut down to a rank, or trimmed first (TIES, DARE).

An update is s B A. "linear" adds factors, A = sum(sign(w) sqrt(|w| s) A_i) and B = sum(sqrt(|w| s) B_i), which is cheap
and rough; "cat" stacks them, which is exact and of the summed rank; "svd" adds the products w s B_i A_i and keeps the
largest singular values. TIES (https://arxiv.org/abs/2306.01708), DARE (https://arxiv.org/abs/2311.03099) and pruning by
magnitude act on the factors, or with "_svd" on the products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import inject, match
from .errors import AdapterError, ConfigError, listing
from .layer import AdapterLayer
from .method import METHODS, Adapter, Method, method_of

if TYPE_CHECKING:
    from .tuner import Tuner

Rule = Callable[[Sequence[Tensor], Tensor, float, str], Tensor]
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


# rules: tensors of one shape, their weights, the share to keep, how signs are elected
def prune(tensor: Tensor, density: float, method: str = "magnitude", rescale: bool = False) -> Tensor:
    """Keep a share of the values and set the others to zero.

    "magnitude" keeps the largest, "random" each with probability `density`; `rescale` divides by `density`.
    """
    if density >= 1:
        return tensor
    if method == "random":
        kept = tensor * torch.bernoulli(torch.full_like(tensor, density))
    else:
        top = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
        kept = torch.zeros_like(tensor).flatten().index_copy(0, top, tensor.flatten()[top]).view_as(tensor)
    return kept / density if rescale and density > 0 else kept


def calculate_majority_sign_mask(tensor: Tensor, method: str = "total") -> Tensor:
    """Where stacked tensors (n, ...) have the elected sign: that of their sum ("total") or of most ("frequency")."""
    votes = tensor.sign() if method == "frequency" else tensor
    elected = torch.where(votes.sum(dim=0) >= 0, 1.0, -1.0)
    return tensor.sign() == elected


def disjoint_merge(task_tensors: Tensor, majority_sign_mask: Tensor) -> Tensor:
    """The mean, place by place, of the values of elected sign that are not zero."""
    kept = task_tensors * majority_sign_mask
    return kept.sum(dim=0) / kept.count_nonzero(dim=0).clamp(min=1)


def weighted(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The tensors times their weights, stacked: (n, ...)."""
    return torch.stack(list(tensors)) * weights.view(-1, *(1 for _ in tensors[0].shape))


def task_arithmetic(tensors: Sequence[Tensor], weights: Tensor, density: float = 1.0, majority: str = "") -> Tensor:
    """The weighted sum."""
    return weighted(tensors, weights).sum(dim=0)


def magnitude_prune(tensors: Sequence[Tensor], weights: Tensor, density: float, majority: str = "") -> Tensor:
    """The weighted sum of each tensor's largest values."""
    return task_arithmetic([prune(t, density) for t in tensors], weights)


def ties(tensors: Sequence[Tensor], weights: Tensor, density: float, majority: str = "total") -> Tensor:
    """TIES: trim to the largest values, elect a sign, average what has it."""
    return _elected([prune(t, density) for t in tensors], weights, majority)


def dare_linear(tensors: Sequence[Tensor], weights: Tensor, density: float, majority: str = "") -> Tensor:
    """DARE: the weighted sum of randomly thinned tensors, rescaled to keep their expectation."""
    return task_arithmetic([prune(t, density, "random", rescale=True) for t in tensors], weights)


def dare_ties(tensors: Sequence[Tensor], weights: Tensor, density: float, majority: str = "total") -> Tensor:
    """DARE's thinning, then TIES' election and average."""
    return _elected([prune(t, density, "random", rescale=True) for t in tensors], weights, majority)


def _elected(tensors: Sequence[Tensor], weights: Tensor, majority: str) -> Tensor:
    mask = calculate_majority_sign_mask(torch.stack(list(tensors)), majority)
    return disjoint_merge(weighted(tensors, weights), mask)


RULES: dict[str, Rule] = {
    "linear": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "magnitude_prune": magnitude_prune,
}
TRIMMING = [name for name in RULES if name != "linear"]
TYPES = ["svd", "cat", *RULES, *(f"{name}_svd" for name in TRIMMING)]


@dataclass
class Part:
    """What one adapter brings on one layer: weight * scale * B A."""

    A: Tensor
    B: Tensor
    scale: float
    weight: float


@dataclass(kw_only=True)
class Recipe:
    """How adapters are combined. Raises `ConfigError` with all that is wrong about it."""

    adapters: list[str]
    weights: list[float]
    kind: str
    rank: int | None = None
    clamp: float | None = None
    full_matrices: bool = True
    driver: str | None = None
    density: float | None = None
    majority: str = "total"

    def __post_init__(self) -> None:
        wrong = []
        if self.kind not in TYPES:
            wrong.append(f"`combination_type`={self.kind!r} is unknown; choose one of {listing(TYPES, 20)}")
        if not self.adapters or len(self.adapters) != len(self.weights):
            wrong.append(f"{len(self.adapters)} `adapters`, {len(self.weights)} `weights`: as many of each are needed")
        if not all(math.isfinite(w) for w in self.weights):
            wrong.append(f"`weights`={self.weights} must be finite")
        if self.trims and (self.density is None or not 0 <= self.density <= 1):
            wrong.append(f"`density`={self.density} must be in [0, 1] for {self.kind!r}: the share of values to keep")
        if self.rank is not None and self.rank < 1:
            wrong.append(f"`svd_rank`={self.rank} must be at least 1")
        if self.clamp is not None and not 0 <= self.clamp <= 1:
            wrong.append(f"`svd_clamp`={self.clamp} must be in [0, 1]: a quantile")
        if self.majority not in (allowed := ("total", "frequency")):
            wrong.append(f"`majority_sign_method`={self.majority!r} is unknown; choose one of {listing(allowed)}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    @property
    def by_svd(self) -> bool:
        """Whether products are combined and cut down to a rank, rather than factors."""
        return self.kind.endswith("svd")

    @property
    def trims(self) -> bool:
        """Whether values are left out, and so a density is needed."""
        return self.kind.removesuffix("_svd") in TRIMMING

    def combine(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Tensors of one shape into one, by the rule."""
        rule = RULES.get(self.kind.removesuffix("_svd"), task_arithmetic)
        like = tensors[0]
        density = 1.0 if self.density is None else self.density
        return rule(tensors, torch.tensor(weights, dtype=like.dtype, device=like.device), density, self.majority)

    def new_rank(self, ranks: Sequence[int]) -> int:
        """The rank that adapters of these ranks are combined into on a layer, where an SVD does not set it."""
        return sum(ranks) if self.kind == "cat" else max(ranks)

    def factors(self, parts: Sequence[Part], rank: int) -> tuple[Tensor, Tensor]:
        """A and B of the combination, for a scale of 1."""
        first = parts[0]
        if self.by_svd:
            updates = [p.scale * p.B.flatten(1) @ p.A.flatten(1) for p in parts]
            down, up = self.split(self.combine(updates, [p.weight for p in parts]), rank)
            return down.view(rank, *first.A.shape[1:]), up.view(len(up), rank, *first.B.shape[2:])
        up_weights = [math.sqrt(abs(p.weight * p.scale)) for p in parts]
        down_weights = [math.copysign(w, p.weight * p.scale) for w, p in zip(up_weights, parts, strict=True)]
        downs, ups = [p.A for p in parts], [p.B for p in parts]
        if self.kind == "cat":
            downs = [w * t for w, t in zip(down_weights, downs, strict=True)]
            return torch.cat(downs), torch.cat([w * t for w, t in zip(up_weights, ups, strict=True)], dim=1)
        return self.combine(downs, down_weights), self.combine(ups, up_weights)

    def split(self, product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) whose product is nearest to `product`; zeros where its own rank is smaller."""
        u, s, v = torch.linalg.svd(product, full_matrices=self.full_matrices, driver=self.driver)
        u, v = u[:, : len(s)][:, :rank] * s[:rank], v[: len(s)][:rank]
        if self.clamp is not None:
            most = torch.quantile(torch.cat([u.flatten(), v.flatten()]), self.clamp)
            u, v = u.clamp(-most, most), v.clamp(-most, most)
        short = rank - len(v)
        return F.pad(v, (0, 0, 0, short)), F.pad(u, (0, short))


@torch.no_grad()
def add_weighted_adapter(
    tuner: "Tuner",
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Put in a new adapter, inactive at first, that combines these; their weights may be negative.

    Args:
        tuner: the model with its adapters.
        adapters: names of the adapters to combine.
        weights: one number for each; its update is multiplied by it.
        adapter_name: name of the new adapter.
        combination_type: "svd", "cat", "linear", "ties", "dare_linear", "dare_ties" or "magnitude_prune"; the last four
            also with "_svd". See the head of this file.
        svd_rank: rank of the result of an SVD; the largest of the adapters' by default.
        svd_clamp: quantile at which the factors of an SVD are cut off.
        svd_full_matrices: whether the SVD computes full factors.
        svd_driver: cuSOLVER routine of the SVD.
        density: share of values that trimming keeps, in [0, 1].
        majority_sign_method: how TIES elects signs, by "total" or "frequency".

    Raises `ConfigError` or `AdapterError` with nothing changed when the combination is not defined.
    """
    recipe = Recipe(
        adapters=tuner.known(adapters),
        weights=[float(w) for w in weights],
        kind=combination_type,
        rank=svd_rank,
        clamp=svd_clamp,
        full_matrices=svd_full_matrices,
        driver=svd_driver,
        density=density,
        majority=majority_sign_method,
    )
    inject.check_name(tuner.model, adapter_name)
    method = common_method(tuner, recipe)
    layers = [layer for layer in tuner.layers if any(n in layer.adapters for n in recipe.adapters)]
    refuse_undefined(layers, tuner, method, recipe)
    ranks = {layer.path: recipe.new_rank([_rank(a) for a, _ in _sources(layer, recipe)]) for layer in layers}
    if recipe.by_svd:
        ranks = dict.fromkeys(ranks, recipe.rank or max(ranks.values()))
    cfg = method.with_ranks(combined_targets(tuner, layers, recipe), ranks)
    results = {layer: _combined(layer, method, cfg.at(layer.path), recipe, ranks[layer.path]) for layer in layers}
    tuner.add(adapter_name, cfg)
    for layer, tensors in results.items():
        for slot, tensor in zip(method.product, tensors, strict=True):
            layer.adapters[adapter_name].tensor(slot).copy_(tensor)


def _sources(layer: AdapterLayer, recipe: Recipe) -> list[tuple[Adapter, float]]:
    """The adapters to combine that stand on this layer, and their weights."""
    pairs = zip(recipe.adapters, recipe.weights, strict=True)
    return [(layer.adapters[name], w) for name, w in pairs if name in layer.adapters]


def _rank(a: Adapter) -> int:
    return getattr(a.cfg, a.cfg.rank_field)


def _combined(layer: AdapterLayer, method: Method, cfg: Any, recipe: Recipe, rank: int) -> tuple[Tensor, Tensor]:
    scale = method.scaling(layer.site, cfg)
    parts = []
    for a, weight in _sources(layer, recipe):
        down, up = (a.tensor(slot).to(torch.promote_types(a.dtype, torch.float32)) for slot in method.product)
        parts.append(Part(down, up, a.scale / scale, weight))
    return recipe.factors(parts, rank)


def common_method(tuner: "Tuner", recipe: Recipe) -> Method:
    """The one method of the adapters. Raises `AdapterError` unless its update is a product of two factors."""
    methods = list(dict.fromkeys(method_of(tuner.peft_config[n]) for n in recipe.adapters))
    method, named = methods[0], [type(m).__name__ for m in methods]
    if len(methods) > 1:
        raise AdapterError(f"{listing(recipe.adapters)} are of different methods: {listing(named)}; choose one")
    if not method.product:
        able = sorted(type(m).__name__ for m in METHODS.values() if m.product)
        raise AdapterError(f"{named[0]} adapters cannot be combined: only updates B A can ({listing(able)})")
    return method


def refuse_undefined(layers: Sequence[AdapterLayer], tuner: "Tuner", method: Method, recipe: Recipe) -> None:
    """Raise `AdapterError` with everything that leaves the combination undefined."""
    wrong = []
    for name in recipe.adapters:
        if getattr(tuner.peft_config[name], "modules_to_save", None):
            wrong.append(f"{name!r} has modules trained in full (`modules_to_save`), which are no updates B A")
        if method.changes_base(tuner.peft_config[name]):
            wrong.append(f"{name!r} began by changing the base weight, and its update is relative to that")
    for layer in layers:
        wrong += _obstacles(layer, [a for a, _ in _sources(layer, recipe)], method, recipe)
    if wrong:
        more = [f"and {len(wrong) - 8} more"] if len(wrong) > 8 else []
        raise AdapterError(f"{listing(recipe.adapters)} cannot be combined: " + "; ".join([*wrong[:8], *more]))


def _obstacles(layer: AdapterLayer, sources: Sequence[Adapter], method: Method, recipe: Recipe) -> list[str]:
    others = {slot.name for a in sources for key, slot in a.slots.items() if key not in method.product}
    if others:
        return [f"{layer.path}: no rule combines {listing(sorted(others))}"]
    wrong = []
    ranks = [_rank(a) for a in sources]
    new_rank = recipe.by_svd or recipe.kind == "cat"
    if len(set(ranks)) > 1 and not new_rank:
        wrong.append(f'{layer.path}: ranks {ranks} differ; {recipe.kind!r} needs equal ones, "cat" and "svd" do not')
    down, up = (sources[0].slots[key].shape for key in method.product)
    if not down[0] == up[1] == ranks[0] and new_rank:
        wrong.append(f"{layer.path}: {recipe.kind!r} mixes ranks, which grouped layers and experts keep apart")
    return wrong


def combined_targets(tuner: "Tuner", layers: Sequence[AdapterLayer], recipe: Recipe) -> Any:
    """The first adapter's configuration, made to mean every module that any of the adapters adapts."""
    configs = [tuner.peft_config[n] for n in recipe.adapters]
    first = configs[0]
    if any(c.target_parameters != first.target_parameters for c in configs):
        raise AdapterError("adapters with different `target_parameters` cannot be combined")
    if all(_targets(c) == _targets(first) for c in configs):
        return replace(first)
    changes: dict[str, Any] = {name: None for name in TARGETS if name in type(first).__dataclass_fields__}
    return replace(first, **changes | {"target_modules": shortest_targets(tuner.model, layers)})


def shortest_targets(model: nn.Module, layers: Sequence[AdapterLayer]) -> list[str]:
    """The shortest names that mean the modules of these layers, and nothing else in the model."""
    paths = {layer.path for layer in layers if layer.site.kind != "parameter"}
    paths -= {f"{p}.out_proj" for p in paths}  # it goes with its attention
    others = [p.name for p in match.walk(model) if p.name not in paths]
    return sorted(match.shortest(sorted(paths), others))


def _targets(cfg: Any) -> list[Any]:
    values = [getattr(cfg, name) for name in TARGETS]
    return [set(v) if isinstance(v, list) else v for v in values]

"""KappaTune (https://arxiv.org/abs/2506.16289): adapt the layers whose weights have the smallest condition numbers.

kappa = s_1 / s_n, the largest singular value over the smallest. A small one means that no direction is more specialised
than others, so that training there forgets little.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .match import walk
from .sites import site_of, site_type
from .tuner import progress

SUFFIXES = (".gate_up_proj", ".down_proj", ".gate_proj", ".up_proj")
TINY = 1e-8


class KappaTuneSelector:
    """The condition numbers of a model's linear layers and stacked experts, and a choice by them.

    Args:
        model: the base model.
        max_dim_size_to_analyze: larger matrices are left out.
        moe_param_suffixes: how the names of parameters end that are stacks of experts (experts, out, in).
        show_progress: show a bar, where `tqdm` is installed.
    """

    def __init__(
        self,
        model: nn.Module,
        max_dim_size_to_analyze: int = 16384,
        moe_param_suffixes: tuple[str, ...] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.model, self.most = model, max_dim_size_to_analyze
        self.suffixes, self.show = tuple(moe_param_suffixes or SUFFIXES), show_progress
        self._layers: dict[str, float] | None = None
        self._parameters: dict[str, float] | None = None

    @property
    def layers(self) -> dict[str, float]:
        """Kappa of each linear layer, by path."""
        if self._layers is None:
            kinds = {p.name: p.module for p in walk(self.model) if (s := site_type(p.module)) and s.kind == "linear"}
            self._layers = self._numbers({name: site_of(layer).weight() for name, layer in kinds.items()})
        return self._layers

    @property
    def parameters(self) -> dict[str, float]:
        """Kappa of each stack of experts, the mean over them, by path."""
        if self._parameters is None:
            named = self.model.named_parameters()
            self._parameters = self._numbers(
                {name: p for name, p in named if p.dim() == 3 and f".{name}".endswith(self.suffixes)}
            )
        return self._parameters

    def _numbers(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        small = {name: w for name, w in weights.items() if max(w.shape[-2:]) <= self.most}
        return {name: kappa(w) for name, w in (progress(small.items(), "kappa") if self.show else small.items())}

    def get_best_targets(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Names for `target_modules`, the smallest kappa first.

        `num_modules` of them, or a share `top_p`, or all; `threshold`: only those with a kappa up to it.
        """
        return chosen(self.layers, top_p, num_modules, threshold)

    def get_best_target_parameters(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Names for `target_parameters`, likewise."""
        return chosen(self.parameters, top_p, num_modules, threshold)


def find_kappa_target_modules(
    model: nn.Module,
    top_p: float = 0.2,
    max_dim_size_to_analyze: int = 16384,
    moe_param_suffixes: tuple[str, ...] | None = None,
    show_progress: bool = True,
) -> dict[str, list[str] | None]:
    """`target_modules` and `target_parameters` (or None) for a configuration: the share `top_p` of smallest kappa."""
    selector = KappaTuneSelector(model, max_dim_size_to_analyze, moe_param_suffixes, show_progress)
    found = selector.get_best_target_parameters(top_p) or None
    return {"target_modules": selector.get_best_targets(top_p), "target_parameters": found}


@torch.no_grad()
def kappa(w: Tensor) -> float:
    """The condition number of a matrix, or the mean of those of a stack; infinite for one of zeros."""
    s = torch.linalg.svdvals(w.float())
    return float((s[..., 0] / (s[..., -1] + TINY)).where(s[..., 0] > 0, torch.inf).mean())


def chosen(numbers: Mapping[str, float], top_p: float | None, count: int | None, threshold: float | None) -> list[str]:
    """The names of the smallest numbers."""
    names = sorted((n for n, k in numbers.items() if threshold is None or k <= threshold), key=numbers.__getitem__)
    if count is None:
        count = len(names) if top_p is None else max(1, int(top_p * len(numbers)))
    return names[:count]

"""The rules of `add_weighted_adapter`, on tensors of one shape."""

from ..combine import (
    calculate_majority_sign_mask,
    dare_linear,
    dare_ties,
    disjoint_merge,
    magnitude_prune,
    prune,
    task_arithmetic,
    ties,
)

__all__ = [
    "calculate_majority_sign_mask", "dare_linear", "dare_ties", "disjoint_merge", "magnitude_prune", "prune",
    "task_arithmetic", "ties",
]  # fmt: skip

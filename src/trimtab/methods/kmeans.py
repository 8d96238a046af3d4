"""K-means by Lloyd's algorithm, with the clusters that scikit-learn's `KMeans(init="random", n_init=1)` has for a seed.

Files of PEFT hold what was trained on such clusters but not the clusters, so the first centres must be the same rows:
they follow from the Mersenne Twister (https://doi.org/10.1145/272991.272995), which Python has too, seeded by one word.
"""

import random

import torch
from torch import Tensor


def kmeans(x: Tensor, k: int, seed: int, steps: int = 10, tolerance: float = 1e-4) -> list[Tensor]:
    """The rows (indices, ascending) of each cluster of x (n, features); clusters that end up empty are left out.

    It stops early when the centres together move by no more than `tolerance` times the mean variance of a feature.
    """
    n = x.shape[0]
    x = x - x.mean(dim=0)
    enough = tolerance * x.var(dim=0, correction=0).mean()
    centres = x[some_rows(n, min(k, n), seed)]
    for _ in range(steps):
        before, labels = centres, nearest(x, centres)
        empty = (labels.bincount(minlength=len(centres)) == 0).nonzero().flatten()
        labels[(x - before[labels]).square().sum(dim=1).topk(len(empty)).indices] = empty  # the rows that are worst off
        counts = labels.bincount(minlength=len(centres)).clamp(min=1)
        centres = torch.zeros_like(before).index_add_(0, labels, x) / counts.unsqueeze(1)
        if (centres - before).square().sum() <= enough:
            break
    labels = nearest(x, centres)
    clusters = [(labels == i).nonzero().flatten() for i in range(len(centres))]
    return [rows for rows in clusters if len(rows)]


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre's index for each row of x."""
    return (centres.square().sum(dim=1) - 2 * x @ centres.T).argmin(dim=1)


def some_rows(n: int, k: int, seed: int) -> list[int]:
    """k different rows of n, in the order in which they are drawn."""
    words = [seed]
    for i in range(1, 624):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) % 2**32)
    draw = random.Random()
    draw.setstate((3, (*words, 624), None))
    found: dict[int, None] = {}
    while len(found) < k:
        left = [i for i in range(n) if i not in found]
        for u in [draw.random() for _ in range(k - len(found))]:
            found.setdefault(left[int(u * len(left))])
    return list(found)

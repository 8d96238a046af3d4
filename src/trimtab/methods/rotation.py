"""Rotations: skew-symmetric matrices, their Cayley transform, reflections, and blocks of them applied to features.

Every orthogonal method is made of these. Features stand in the last axis of `x`, and are multiplied from the right.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..sites import Site

SQRT2 = 2**0.5


def precise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` in float32 or more, autocast or not; the result is in the format of its first argument."""

    @wraps(function)
    def computed(t: Tensor, *args: Any) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            return function(t.to(torch.promote_types(t.dtype, torch.float32)), *args).to(t.dtype)

    return computed


# from numbers to rotations
def skew(v: Tensor) -> Tensor:
    """The skew-symmetric matrices (..., n, n) whose upper triangles are `v` (..., n (n - 1) / 2), row by row."""
    n = (1 + math.isqrt(1 + 8 * v.shape[-1])) // 2
    rows, columns = torch.triu_indices(n, n, 1, device=v.device)
    upper = v.new_zeros(*v.shape[:-1], n, n)
    upper[..., rows, columns] = v
    return upper - upper.mT


def bounded(v: Tensor, most: float) -> Tensor:
    """`v`, scaled down where the Frobenius norm of `skew(v)` is above `most`."""
    return v * (most / (SQRT2 * v.norm(dim=-1, keepdim=True)).clamp(min=most))


@precise
def cayley(q: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1: orthogonal for a skew-symmetric Q."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return torch.linalg.solve(identity - q, identity + q)


@precise
def neumann(q: Tensor, terms: int) -> Tensor:
    """`cayley(q)` by a Neumann series: (I + Q) (I + Q + Q^2 + ...) up to the power terms - 1; nearly orthogonal.

    Files of PEFT mean I + 2 Q by two terms, and by three the same as by four.
    """
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if terms == 2:
        return identity + 2 * q
    inverse = identity
    for _ in range(max(terms, 4) - 2):
        inverse = identity + q @ inverse
    return inverse + q @ inverse


@precise
def reflections(u: Tensor) -> Tensor:
    """D (r, n) such that I - U D is the product of the reflections I - 2 u u^T at the unit columns of U (n, r).

    That is the compact WY form: D = T U^T, where T^-1 has 1/2 on the diagonal and U^T U above it.
    """
    half = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device) / 2
    return torch.linalg.solve_triangular((u.mT @ u).triu(1) + half, u.mT, upper=True)


@precise
def orthonormal(u: Tensor) -> Tensor:
    """The columns of U (n, r) made orthonormal one after the other, up to their signs."""
    return torch.linalg.qr(u)[0]


@precise
def unit(u: Tensor) -> Tensor:
    """The columns of U (n, r) at length one."""
    return F.normalize(u, dim=0)


# rotations of features
def turn(x: Tensor, r: Tensor) -> Tensor:
    """`x` (..., b n) with each n features in turn multiplied by their block of `r` (b, n, n)."""
    wide = torch.promote_types(x.dtype, r.dtype)
    return torch.einsum("...bi,bij->...bj", x.to(wide).unflatten(-1, r.shape[:-1]), r.to(wide)).flatten(-2)


def butterfly(x: Tensor, r: Tensor, level: int) -> Tensor:
    """`turn`, where a block takes its two halves from places 2^level halves apart; at level 0 they are neighbours."""
    if level == 0:
        return turn(x, r)
    apart, half = 2**level, r.shape[-1] // 2
    gathered = x.unflatten(-1, (-1, 2, apart, half)).transpose(-3, -2)
    turned = turn(gathered.flatten(-4), r).unflatten(-1, (-1, apart, 2, half))
    return turned.transpose(-3, -2).flatten(-4)


def drop_blocks(r: Tensor, p: float) -> Tensor:
    """Multiplicative dropout: each block of `r` (..., n, n) is the identity with probability `p`."""
    dropped = torch.rand(*r.shape[:-2], 1, 1, device=r.device) < p
    return torch.where(dropped, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device), r)


# what is rotated at a site
def features(site: Site) -> int:
    """How many features are rotated: those that a layer reads, a kernel's included, or that an embedding returns."""
    return site.out if site.kind == "embedding" else site.matrix[1]


def on_features(w: Tensor, site: Site, rotate: Callable[[Tensor], Tensor]) -> Tensor:
    """The weight `w` with `rotate` applied to its `features`; those of a grouped convolution are each group's own."""
    if site.kind == "embedding":
        return rotate(w.mT).mT
    return rotate(w.reshape(-1, features(site))).view(w.shape)


# how they fall into blocks
def divided(total: int, by: int, option: str) -> int:
    """A number of features divided by what an option says. Raises `ConfigError` where that leaves a rest."""
    if total % by:
        raise ConfigError(f"`{option}`={by} does not divide the {total} features that are rotated here")
    return total // by


def wrong_blocks(**given: int) -> list[str]:
    """What is wrong with the options for the number of blocks and for their size, of which one must be 0."""
    said = " and ".join(f"`{option}`={by}" for option, by in given.items())
    wrong = [] if min(given.values()) >= 0 else [f"{said} must not be negative"]
    if sum(map(bool, given.values())) != 1:
        wrong.append(f"{said}: one follows from the other; give one, and 0 for the other")
    return wrong


def blocks(total: int, **given: int) -> tuple[int, int]:
    """Number and size of the blocks of `total` features. Raises `ConfigError` where they cannot be rotated so."""
    [(option, by)] = [(option, by) for option, by in given.items() if by]
    other = divided(total, by, option)
    number, size = (by, other) if option == next(iter(given)) else (other, by)
    if size == 1:
        raise ConfigError(f"`{option}`={by} makes blocks of 1 feature, in which there is nothing to rotate")
    return number, size

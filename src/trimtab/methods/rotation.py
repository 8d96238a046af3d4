"""What methods that rotate features have in common: skew-symmetric matrices, their Cayley transform, blocks of them."""

import torch
from torch import Tensor


def skew(v: Tensor, b: int) -> Tensor:
    """Skew-symmetric matrices (n, b, b) from what stands above their diagonals, (n, b (b - 1) / 2), row by row."""
    q = v.new_zeros(len(v), b, b)
    rows, columns = torch.triu_indices(b, b, 1, device=v.device)
    q = q.index_put((torch.arange(len(v), device=v.device)[:, None], rows, columns), v)
    return q - q.mT


def cayley(q: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1 of skew-symmetric Q (..., b, b): a rotation."""
    q32 = q.to(torch.promote_types(q.dtype, torch.float32))
    eye = torch.eye(q.shape[-1], dtype=q32.dtype, device=q.device)
    return torch.linalg.solve(eye - q32, eye + q32, left=False).to(q.dtype)


def cayley_neumann(q: Tensor, terms: int) -> Tensor:
    """`cayley`, its inverse as a Neumann series with this many terms: I + 2 Q + ... + 2 Q^(n-2) + Q^(n-1).

    PEFT, whose files mean it so, cuts two terms off at 2 Q and computes three as four.
    """
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if terms < 3:
        return eye + 2 * q * (terms - 1)
    total, power = eye + 2 * q, q
    for _ in range(max(terms, 4) - 3):
        power = power @ q
        total = total + 2 * power
    return total + power @ q


def some_identity(r: Tensor, p: float) -> Tensor:
    """Blocks (..., b, b), each with probability `p` the identity."""
    kept = torch.rand(*r.shape[:-2], 1, 1, device=r.device) >= p
    return torch.where(kept, r, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))


def by_blocks(x: Tensor, r: Tensor) -> Tensor:
    """Features (..., n b) times the block-diagonal matrix of r (n, b, b), or of one r (1, b, b) again and again."""
    parts = x.unflatten(-1, (-1, r.shape[-1]))
    return (parts @ r[0] if len(r) == 1 else torch.einsum("...ni,nij->...nj", parts, r)).flatten(-2)

"""What files hold for a tensor that they do not hold as it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What a file holds for a tensor that it does not hold as it is: one tensor or several.

    `parts` makes each from the tensor, by what its key adds to the tensor's; `whole(like, *parts)` makes the tensor,
    of the shape and number format of `like`.
    """

    parts: Mapping[str, Callable[[Tensor], Tensor]]
    whole: Callable[..., Tensor]


def entries(axis: int, index: Tensor) -> Form:
    """The form of a tensor of which a file holds what stands at some indices along an axis; the rest is zero."""

    def whole(like: Tensor, part: Tensor) -> Tensor:
        return torch.zeros_like(like, device=part.device).index_copy(axis, index.to(part.device), part.to(like.dtype))

    return Form({"": lambda t: t.index_select(axis, index.to(t.device))}, whole)

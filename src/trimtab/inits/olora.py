"""OLoRA (https://arxiv.org/abs/2406.01775): an orthonormal B from W itself.

With W = Q R: B = the first r columns of Q, A = the first r rows of R; the base keeps W - s B A.
"""

from typing import Any

import torch
from torch import Tensor

from .split import Split


class OLora(Split):
    """See the head of this file."""

    name = "olora"

    def split(self, w: Tensor, r: int, a: Any, option: str) -> tuple[Tensor, Tensor]:
        q, upper = torch.linalg.qr(w)
        return q[..., :r], upper[..., :r, :]

"""DeLoRA: https://arxiv.org/abs/2503.18225

W' = W + (l / r) B X A diag(n), with A (r, in), B (out, r), X = diag(1 / |a_i| |b_i|), and n (in) the norms of W's
columns at the start, frozen. The boundary l (1), trained too, sets the strength alone. The kernel of a convolution is
flattened into `in`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..config import AdapterConfig
from ..method import Adapter, Method, Slot, constant, kaiming, zeros
from ..sites import Site
from .targets import LORA_TARGETS

SMALLEST = 1e-4  # what |a_i| and |b_i| count as at least: B starts at zero


@dataclass(kw_only=True)
class DeloraConfig(AdapterConfig, kind="DELORA"):
    """Decoupled low-rank adaptation: direction by normalised factors, strength by one number a layer."""

    positive = ("r",)
    shares = ("module_dropout",)

    patterns: ClassVar = {"delora_lambda": "lambda_pattern"}

    r: int = 8  # rank
    delora_lambda: float = 15  # where the boundary l starts
    module_dropout: float = 0.0  # dropout on the adapter's input
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or delora_only
    init_weights: bool = True  # B starts at zero, without effect; False: random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    rank_pattern: dict[str, int] | None = field(default_factory=dict)  # rank by module name or regular expression
    lambda_pattern: dict[str, float] | None = field(default_factory=dict)  # where l starts likewise


class Delora(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "DELORA", "delora_", "module_dropout", LORA_TARGETS

    def slots(self, site: Site, cfg: DeloraConfig) -> dict[str, Slot]:
        out, columns = site.matrix
        return {
            "A": Slot(name="delora_A", shape=(cfg.r, columns), init=kaiming),
            "B": Slot(name="delora_B", shape=(out, cfg.r), init=zeros if cfg.init_weights else kaiming),
            "boundary": Slot(name="delora_lambda", shape=(1,), init=constant(cfg.delora_lambda)),
            "n": Slot(name="delora_w_norm", shape=(columns,), trainable=False),
        }

    def scaling(self, site: Site, cfg: DeloraConfig) -> float:
        return 1 / cfg.r

    def start(self, a: Adapter) -> None:
        a.n.copy_(a.site.weight().detach().to(a.n.dtype).reshape(a.site.matrix).norm(dim=0))

    def down(self, a: Any) -> Tensor:
        """(l / r) X A diag(n), (r, in)."""
        norms = a.A.norm(dim=1).clamp(min=SMALLEST) * a.B.norm(dim=0).clamp(min=SMALLEST)
        return (a.scale * a.boundary / norms).unsqueeze(1) * a.A * a.n

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, (a.B @ self.down(a)).view(a.site.shape))

    def direct(self, site: Site, cfg: DeloraConfig) -> bool:
        return super().direct(site, cfg) and site.shape[1] == site.inp

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        kernel = a.site.shape[2:]
        h = a.site.op(a.drop(x), self.down(a).view(-1, a.site.inp, *kernel))
        return y + a.site.up(h, a.B.view(*a.B.shape, *(1 for _ in kernel)))

"""Bottleneck adapters: https://arxiv.org/abs/1902.00751 (Houlsby), https://arxiv.org/abs/2005.00247 (Pfeiffer)

y' = y + s (U f(D y + d) + u), with D (r, out), U (out, r), f a nonlinearity: a small network behind a layer. Houlsby
puts one behind the attention and one behind the feed-forward network of each block, Pfeiffer the second only. Parallel
(https://arxiv.org/abs/2110.04366): y' = y + s (U f(D x + d) + u), beside a layer, as a rule the feed-forward network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..config import AdapterConfig
from ..errors import AdapterError, listing
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site

NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "tanh": F.tanh, "leaky_relu": F.leaky_relu,
}  # fmt: skip

Where = tuple[str | list[str], str | list[str], str | list[str]]
_GATED: Where = ["o_proj", "down_proj"], ["down_proj"], ["mlp"]
_POST: Where = ["output.dense"], r".*\.\d+\.output\.dense", []
WHERE: dict[str, Where] = {
    **dict.fromkeys("llama mistral stablelm gemma gemma2 gemma3_text qwen2 qwen3".split(), _GATED),
    **dict.fromkeys("bert roberta xlm-roberta electra deberta deberta-v2 layoutlm".split(), _POST),
    "gpt2": (["c_proj"], ["mlp.c_proj"], ["mlp"]),
    "opt": (["out_proj", "fc2"], ["fc2"], []),
    "bart": (["out_proj", "fc2"], ["fc2"], []),
    "t5": (["o", "wo"], ["wo"], ["DenseReluDense"]),
}
"""By architecture: the modules of Houlsby's placement, of Pfeiffer's, and the feed-forward networks."""
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass(kw_only=True)
class BottleneckConfig(AdapterConfig, kind="BOTTLENECK"):
    """Small networks of two layers behind, or beside, layers or whole modules of the model."""

    shares = ("bottleneck_dropout",)

    placement: str = "pfeiffer"  # "houlsby", "pfeiffer" or "parallel": the default targets; the last is beside them
    reduction_factor: float = 16  # width of what comes out of the module, over that of the network
    non_linearity: str = "relu"  # f
    scaling: float = 1.0  # s
    bottleneck_dropout: float = 0.0  # dropout on the network's input
    init_weights: bool = True  # U starts at zero, without effect; False: at random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.placement not in PLACEMENTS:
            wrong.append(f"`placement`={self.placement!r} is unknown; choose one of {listing(PLACEMENTS)}")
        if self.non_linearity not in NONLINEAR:
            wrong.append(f"`non_linearity`={self.non_linearity!r} is unknown; choose one of {listing(NONLINEAR)}")
        if self.reduction_factor <= 0:
            wrong.append(f"`reduction_factor`={self.reduction_factor} must be above 0")
        return wrong


class Bottleneck(Method):
    """See the head of this file."""

    name, prefix, dropout, on_blocks = "BOTTLENECK", "bottleneck_", "bottleneck_dropout", True
    depends = "what goes through the layer"

    def fill(self, cfg: BottleneckConfig, model_type: str | None) -> None:
        if cfg.target_modules is None and model_type in WHERE:
            cfg.target_modules = WHERE[model_type][PLACEMENTS.index(cfg.placement)] or None

    def slots(self, site: Site, cfg: BottleneckConfig) -> dict[str, Slot]:
        r, kernel = max(1, round(site.out / cfg.reduction_factor)), site.shape[2:] if site.kind == "conv" else ()
        point = tuple(1 for _ in kernel)
        down = (r, site.inp, *kernel) if cfg.placement == "parallel" else (r, site.out, *point)
        up = zeros if cfg.init_weights else kaiming
        return {
            "D": Slot(name="bottleneck_down", module=True, shape=down, init=kaiming),
            "d": Slot(name="bottleneck_down", module=True, shape=(r,), part="bias"),
            "U": Slot(name="bottleneck_up", module=True, shape=(site.out, r, *point), init=up),
            "u": Slot(name="bottleneck_up", module=True, shape=(site.out,), part="bias"),
        }

    def scaling(self, site: Site, cfg: BottleneckConfig) -> float:
        return cfg.scaling

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        if a.site.whole and y.shape[-1] != a.site.out:
            raise AdapterError(f"{a.layer.path!r} returns {y.shape[-1]} features, where {a.site.out} were expected")
        axis = (-1, *(1 for _ in a.site.shape[2:]))
        parallel = a.cfg.placement == "parallel"
        down = a.site.op(a.drop(x), a.D) if parallel else a.site.up(a.drop(y.to(a.dtype)), a.D)
        h = NONLINEAR[a.cfg.non_linearity](down + a.d.view(axis))
        return y + a.scale * (a.site.up(h, a.U) + a.u.view(axis))

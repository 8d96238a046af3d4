"""LoRA: https://arxiv.org/abs/2106.09685

W' = W + s B A, with A (r, in), B (out, r), s = alpha / r (rsLoRA, https://arxiv.org/abs/2312.03732: alpha / sqrt(r)).
Its variants (DoRA, ...) are subclasses in files of their own.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..config import AdapterConfig, reserved
from ..errors import ConfigError, ConversionError, listing
from ..method import STARTS, Adapter, Method, Slot, Start, kaiming, normal, zeros
from ..sites import Site
from . import options
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class LoraRuntimeConfig:
    """Options that are not saved."""

    ephemeral_gpu_offload: bool = False


@dataclass(kw_only=True)
class LoraConfig(AdapterConfig, kind="LORA"):
    """Low-rank adaptation; `r` is the rank, `lora_alpha / r` the factor before the update."""

    positive = ("r",)
    shares = ("lora_dropout",)

    alpha_field: ClassVar[str] = "lora_alpha"

    r: int = 8  # rank
    lora_alpha: float = 8  # numerator of the scale
    lora_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: Literal["none", "all", "lora_only"] = "none"  # type: ignore[misc]  # which biases of the base are trained and saved
    use_rslora: bool = False  # scale by 1 / sqrt(r) instead of 1 / r
    init_lora_weights: bool | str = True  # True, False (B random too), "gaussian", or the name of a start
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    rank_pattern: dict[str, int] | None = field(default_factory=dict)  # rank by module name or regular expression
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)  # alpha likewise
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None  # type: ignore[misc]  # embedding rows to train
    use_dora: bool = False  # learn the magnitude of each output row apart
    lora_bias: bool = False  # a bias after B
    target_parameters: list[str] | str | None = None  # type: ignore[misc]  # bare parameters (experts), by name or regex
    layer_replication: list[list[int]] | None = None  # type: ignore[misc]  # ranges of layers to stack, weights shared
    runtime_config: LoraRuntimeConfig | dict[str, Any] = field(default_factory=LoraRuntimeConfig)  # not saved
    megatron_config: dict[str, Any] | None = reserved(None)
    megatron_core: str | None = "megatron.core"
    loftq_config: Any = field(default_factory=dict)  # a LoftQConfig, or its fields; likewise all `..._config` below
    eva_config: Any = None  # of the start "eva"
    corda_config: Any = None  # of "corda"
    lora_ga_config: Any = None  # of "lora_ga"
    velora_config: Any = None  # keep compressed inputs for the backward pass
    alora_invocation_tokens: list[int] | None = None  # act only from the last such sequence of tokens on
    use_qalora: bool = False  # A reads sums over groups of inputs
    qalora_group_size: int = 16  # inputs in such a group
    monteclora_config: Any = None  # train around random samples of A
    use_bdlora: Any = None  # A or B block-diagonal: a BdLoraConfig
    arrow_config: Any = None  # mix other adapters for each token: an ArrowConfig, or its fields
    kasa_config: Any = None  # learn singular values, on a base without its smallest ones
    ensure_weight_tying: bool = False  # type: ignore[misc]  # adapters of tied layers are one too

    def __post_init__(self) -> None:
        options.settle(self, str(self.init_lora_weights).lower())
        super().__post_init__()

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        start = self.init_lora_weights
        if isinstance(start, str) and start != "gaussian" and start_of(start)[0] is None:
            known = ["gaussian", *STARTS]
            wrong.append(
                f"`init_lora_weights`={self.init_lora_weights!r} is unknown; choose True, False or {listing(known)}"
            )
        if self.lora_bias and self.use_dora:
            wrong.append("`lora_bias` cannot be combined with `use_dora`")
        return wrong + options.mistakes(self)

    def changes(self, path: str) -> dict[str, Any]:
        return super().changes(path) | options.at(self, path)

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_dict().items() if k != "runtime_config"}


def start_of(value: bool | str) -> tuple[Start | None, str]:
    """The start that `init_lora_weights` names, if it is one, and its option: "4" in `pissa_niter_4`."""
    name, _, option = str(value).partition("_niter_")
    return STARTS.get(name.lower()), option


class Lora(Method):
    """See the head of this file."""

    name, prefix, dropout, defaults = "LORA", "lora_", "lora_dropout", LORA_TARGETS
    product: ClassVar[tuple[str, str] | tuple[()]] = ("A", "B")
    transposed: ClassVar = {"A": "B", "B": "A"}
    no_start: ClassVar[str] = ""
    """Of a variant: why its factors cannot begin by a `Start`; "" where they can."""

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        embedding, kernel = site.kind == "embedding", site.shape[2:] if site.kind == "conv" else ()
        experts = getattr(site, "experts", 1)
        if (cfg.lora_bias and not site.pointwise) or (cfg.lora_bias and embedding):
            raise ConfigError(f"`lora_bias` needs a layer with a bias of its own kind; a {site.kind} layer has none")
        start, option = start_of(cfg.init_lora_weights)
        if start is not None and (why := self.no_start or start.refuse(site, cfg, option)):
            raise ConfigError(f"`init_lora_weights`={cfg.init_lora_weights!r} cannot be used: {why}")
        a = zeros if embedding else normal(1 / cfg.r) if cfg.init_lora_weights == "gaussian" else kaiming
        b = normal() if embedding else kaiming if cfg.init_lora_weights is False else zeros
        if embedding and cfg.init_lora_weights is False:
            a = normal()
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        up = (site.out, cfg.r * experts // getattr(site, "groups", 1), *(1 for _ in kernel))
        slots = {
            "A": Slot(name=names[0], shape=(cfg.r * experts, site.inp, *kernel), init=a, module=not embedding),
            "B": Slot(name=names[1], shape=up, init=b, module=not embedding),
        }
        if cfg.lora_bias:
            slots["B_bias"] = Slot(name="lora_B", part="bias", shape=(site.out,), module=True)
        for key in start.frozen if start is not None else ():
            slots[key].trainable = False
        return slots

    def scaling(self, site: Site, cfg: LoraConfig) -> float:
        return site.gain * cfg.lora_alpha / (math.sqrt(cfg.r) if cfg.use_rslora else cfg.r)

    def with_ranks(self, cfg: LoraConfig, ranks: Mapping[str, int]) -> LoraConfig:
        most = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {re.escape(path): r for path, r in ranks.items() if r != most}
        return replace(
            cfg, r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=dict(others),
            use_rslora=False, init_lora_weights=True, **options.unset(cfg),
        )  # fmt: skip

    def doubled(self, cfg: LoraConfig) -> LoraConfig:
        if cfg.init_lora_weights is not True and not self.changes_base(cfg):
            raise ConversionError(
                f"`init_lora_weights`={cfg.init_lora_weights!r} left the base as it was; save it as it is"
            )
        factor = math.sqrt(2) if cfg.use_rslora else 2
        return replace(
            cfg, r=2 * cfg.r, lora_alpha=factor * cfg.lora_alpha, init_lora_weights=True,
            rank_pattern={k: 2 * r for k, r in (cfg.rank_pattern or {}).items()},
            alpha_pattern={k: factor * alpha for k, alpha in (cfg.alpha_pattern or {}).items()}, **options.unset(cfg),
        )  # fmt: skip

    def changes_base(self, cfg: LoraConfig) -> bool:
        start, _ = start_of(cfg.init_lora_weights)
        return start is not None and start.changes_base

    def start(self, a: Adapter) -> None:
        start, option = start_of(a.cfg.init_lora_weights)
        if start is not None:
            start(a, option)

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """A and B as they act, which a variant may make of other tensors."""
        return a.A, a.B

    def update(self, a: Any) -> Tensor:
        """s B A in the layout of the canonical weight."""
        down, up = self.factors(a)
        if a.site.kind == "parameter" and a.site.experts > 1:
            down = down.view(a.site.experts, -1, a.site.inp)
            up = up.view(a.site.out, -1, a.site.experts).permute(2, 0, 1)
            return a.scale * (up @ down)
        up = up if getattr(a.site, "groups", 1) == 1 else a.site.dense(up)
        return a.scale * (up.flatten(1) @ down.flatten(1)).view(*up.shape[:1], *down.shape[1:])

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.add(w, self.update(a))

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        if not a.has("B_bias"):
            return b
        extra = a.scale * a.B_bias
        return extra if b is None else b + extra

    def down(self, x: Tensor, rows: Tensor, a: Any) -> Tensor:
        """The r features that A, which is `rows`, makes of x."""
        return a.site.op(x, rows)

    def change(self, x: Tensor, a: Any) -> Tensor:
        """What is added to the layer's output."""
        down, up = self.factors(a)
        change = a.scale * a.site.up(self.down(a.drop(x), down, a), up)
        return change + a.scale * a.B_bias.view(-1, *(1 for _ in up.shape[2:])) if a.has("B_bias") else change

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return y + self.change(x, a)

"""X-LoRA: https://arxiv.org/abs/2402.07148

y' = y + g sum_e w_e s_e B_e A_e x: trained LoRA adapters e, frozen, mixed for each token (and layer) by weights w that
a small network computes from the base model's last hidden state. The model runs twice: once for that state, then mixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..held import holder_of
from ..method import Method, Slot, kaiming, zeros
from ..sites import Site

NETWORK = "internal_xlora_classifier"


@dataclass(kw_only=True)
class XLoraConfig(AdapterConfig, kind="XLORA"):
    """A mixture of LoRA adapters, weighted for each token."""

    target_modules: ClassVar[Any] = None  # type: ignore[misc]  # the layers that the adapters are on
    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]
    modules_to_save: ClassVar[Any] = None  # type: ignore[misc]

    hidden_size: int | None = None  # width of the base model's hidden states; None: as its configuration says
    adapters: dict[str, str] | None = None  # folder or hub id of each LoRA adapter, by the name it gets
    enable_softmax: bool = True  # weights of a token sum to one
    enable_softmax_topk: bool = False  # softmax among the `top_k_lora` largest only
    layerwise_scalings: bool = False  # weights of its own for every layer
    xlora_depth: int = 1  # layers of the network
    xlora_size: int = 2048  # width between them
    xlora_dropout_p: float = 0.2  # dropout between them
    use_trainable_adapters: bool = False  # train the adapters too
    softmax_temperature: float = 1.0  # below one: sharper weights
    top_k_lora: int | None = None  # only the largest weights of a token count
    scaling_pass_value: float = 0.0  # weight of every adapter in the run that finds the hidden state
    global_scaling_weight: float = 1.0  # g

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if not self.adapters:
            wrong.append("`adapters` must name at least one LoRA adapter and its folder or hub id")
        if self.enable_softmax and self.enable_softmax_topk:
            wrong.append("`enable_softmax` and `enable_softmax_topk` exclude each other")
        if self.enable_softmax_topk and self.top_k_lora is None:
            wrong.append("`enable_softmax_topk` needs `top_k_lora`")
        if self.top_k_lora is not None and not 1 <= self.top_k_lora <= len(self.adapters or {}):
            wrong.append(f"`top_k_lora`={self.top_k_lora} must be between 1 and the number of adapters")
        if self.xlora_depth < 1 or self.softmax_temperature <= 0:
            wrong.append("`xlora_depth` must be at least 1, and `softmax_temperature` above 0")
        return wrong


class XLora(Method):
    """See the head of this file."""

    name, prefix, depends = "XLORA", NETWORK, "each token"

    def companions(self, cfg: XLoraConfig) -> dict[str, str]:
        return cfg.adapters or {}

    def trained_along(self, cfg: XLoraConfig) -> list[str]:
        return list(cfg.adapters or {}) if cfg.use_trainable_adapters else []

    def prepare(self, cfg: XLoraConfig, sites: Mapping[str, Site]) -> None:
        if cfg.hidden_size is None:
            raise ConfigError("`hidden_size` must be given: the width of the base model's hidden states")
        vars(cfg)["order"] = {path: i if cfg.layerwise_scalings else 0 for i, path in enumerate(sites)}

    def slots(self, site: Site, cfg: XLoraConfig) -> dict[str, Slot]:
        if site.kind != "linear":
            raise ConfigError(f"adapters are mixed token by token, which a {site.kind} layer cannot do")
        layers = max(vars(cfg)["order"].values()) + 1
        sizes = [cfg.hidden_size or 0, *[cfg.xlora_size] * (cfg.xlora_depth - 1), layers * len(cfg.adapters or ())]
        slots = {}
        for i, (inp, out) in enumerate(pairwise(sizes)):
            for part, shape, init in (("weight", (out, inp), kaiming), ("bias", (out,), zeros)):
                slots[f"{part}{i}"] = Slot(
                    name=NETWORK, shape=shape, init=init, module=True, part=f"layers.{3 * i}.{part}", shared=True
                )
        return slots

    def before(self, model: nn.Module, name: str, cfg: XLoraConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The weights of the call's tokens, (batch, tokens, layers or 1, adapters)."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise AdapterError("X-LoRA runs the model twice and cannot continue a cache; call it with use_cache=False")
        call = {k: v for k, v in kwargs.items() if k not in ("labels", "past_key_values", "use_cache", "return_dict")}
        with torch.no_grad():
            hidden = model(**call, output_hidden_states=True, use_cache=False, return_dict=True).hidden_states[-1]
        owner: Any = next(m for m in model.modules() if NETWORK in m._modules)._modules[NETWORK]._modules[name]  # type: ignore[union-attr]
        return {"weights": self.weights(self.scores(hidden, owner, cfg), cfg)}

    def scores(self, h: Tensor, network: nn.Module, cfg: XLoraConfig) -> Tensor:
        """What the network makes of hidden states, (batch, tokens, layers or 1, adapters)."""
        for i in range(cfg.xlora_depth):
            if i:
                h = F.dropout(F.relu(h), cfg.xlora_dropout_p, network.training)
            weight, bias = (getattr(*holder_of(network, f"layers.{3 * i}.{part}")) for part in ("weight", "bias"))
            h = F.linear(h.to(weight.dtype), weight, bias)
        return h.unflatten(-1, (-1, len(cfg.adapters or ())))

    def weights(self, scores: Tensor, cfg: XLoraConfig) -> Tensor:
        """The weights that scores mean."""
        if cfg.enable_softmax:
            scores = (scores / cfg.softmax_temperature).softmax(dim=-1)
        if cfg.top_k_lora is None:
            return scores
        best = scores.topk(cfg.top_k_lora, dim=-1)
        values = (best.values / cfg.softmax_temperature).softmax(-1) if cfg.enable_softmax_topk else best.values
        return torch.zeros_like(scores).scatter(-1, best.indices, values)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        weights = a.call.get("weights")
        for e, name in enumerate(a.cfg.adapters):
            one = a.layer.adapters.get(name)
            if one is None:
                continue
            share = a.cfg.scaling_pass_value
            if weights is not None:
                share = a.rows(weights)[..., a.cfg.order[a.layer.path], e, None].to(y)
            h = x.to(one.dtype)
            update = one.method.output(h, torch.zeros((), dtype=y.dtype, device=y.device), one)
            y = y + a.cfg.global_scaling_weight * share * update
        return y

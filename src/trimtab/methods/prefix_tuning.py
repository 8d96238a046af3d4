"""Prefix tuning: https://arxiv.org/abs/2101.00190

In every layer, attention reads [P_K; K] and [P_V; V]: trained keys and values before those of the input.
With projection, P = W2 tanh(W1 E + b1) + b2 of a smaller table E, as the paper trains it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..prompt_method import PromptLearningConfig, PromptMethod, VirtualTokens


@dataclass(kw_only=True)
class PrefixTuningConfig(PromptLearningConfig, kind="PREFIX_TUNING"):
    """Prefix tuning: `num_virtual_tokens` trained keys and values in every layer."""

    positive = ("encoder_hidden_size",)

    init_weights: Literal["zero"] | None = None  # "zero": all keys and values start at zero; None: at random
    encoder_hidden_size: int | None = None  # width between the two layers of the projection; None: that of a token
    prefix_projection: bool = False  # compute the prefix by a network of two layers instead of holding it

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.init_weights not in (None, "zero"):
            wrong.append(f"`init_weights`={self.init_weights!r} is unknown; choose None or 'zero'")
        return wrong


class PrefixEncoder(VirtualTokens):
    """The prefix, (n, layers * 2 * D): for each layer the keys, then the values, of all heads."""

    def __init__(self, config: PrefixTuningConfig) -> None:
        dim: Any = config.token_dim
        flat = config.num_layers * 2 * dim  # type: ignore[operator]
        projected = config.prefix_projection and not config.inference_mode
        super().__init__(config.num_virtual_tokens, dim if projected else flat)  # type: ignore[arg-type]
        self.prefix_projection = config.prefix_projection
        last: Any = self.embedding
        if projected:
            hidden = config.encoder_hidden_size or dim
            self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, flat))
            last = self.transform[2]
        if config.init_weights == "zero":
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def network(self, x: Tensor) -> Tensor:
        return self.transform(x) if hasattr(self, "transform") else x


class PrefixTuning(PromptMethod):
    """See the head of this file."""

    name, kind = "PREFIX_TUNING", "kv"

    def encoder(self, cfg: PrefixTuningConfig, words: nn.Module) -> VirtualTokens:
        cfg.encoder_hidden_size = cfg.encoder_hidden_size or cfg.token_dim
        return PrefixEncoder(cfg)

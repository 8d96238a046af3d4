"""Trainable tokens: of an embedding, some rows are trained, as those of new or special tokens.

W' = W with the rows of `token_indices` replaced. What is tied to the input embedding (an output layer, the embeddings
of an encoder and a decoder) gets the same rows. Of other methods this is the option `trainable_token_indices`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from .. import tie
from ..config import AdapterConfig
from ..errors import listing
from ..method import Slot, normal
from ..sites import Site
from ..wrappers import TokenRows


@dataclass(kw_only=True)
class TrainableTokensConfig(AdapterConfig, kind="TRAINABLE_TOKENS"):
    """Training of the embeddings of some tokens; without `target_modules`, those of the model's input embedding."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format
    modules_to_save: ClassVar[Any] = None  # type: ignore[misc]

    token_indices: list[int] = field(default_factory=list)  # the tokens, by their number
    init_weights: bool = True  # start as the rows are, without effect; False: normal

    def mistakes(self) -> list[str]:
        wrong, indices = super().mistakes(), list(self.token_indices)
        if not indices:
            wrong.append("`token_indices` is empty; name the tokens to train")
        if twice := sorted({i for i in indices if indices.count(i) > 1}):
            wrong.append(f"`token_indices` names {listing(twice)} more than once")
        return wrong


class TrainableTokens(TokenRows):
    """See the head of this file."""

    name, option, tied = "TRAINABLE_TOKENS", "token_indices", True

    def find(self, model: nn.Module, cfg: TrainableTokensConfig) -> str | None:
        source, _ = tie.tied(model)
        return source.name if source else None

    def indices(self, cfg: TrainableTokensConfig) -> list[int]:
        return list(cfg.token_indices)

    def slots(self, site: Site, cfg: TrainableTokensConfig) -> dict[str, Slot]:
        slots = super().slots(site, cfg)
        if not cfg.init_weights:
            slots["delta"].init = normal()
        return slots

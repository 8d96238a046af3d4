"""P-tuning: https://arxiv.org/abs/2103.10385

[f(E); E(x)]: the embeddings before the input are a network's of a trained table E, (n, D).
MLP: f = three layers with ReLU between. LSTM: f = two layers over a bidirectional LSTM along the virtual tokens.
"""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..errors import listing
from ..prompt_method import PromptLearningConfig, PromptMethod, VirtualTokens


class PromptEncoderReparameterizationType(str, Enum):
    """The network that makes the prompt."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig, kind="P_TUNING"):
    """P-tuning: `num_virtual_tokens` embeddings before the input's, computed by a small trained network."""

    positive = ("encoder_hidden_size", "encoder_num_layers")
    shares = ("encoder_dropout",)

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = PromptEncoderReparameterizationType.MLP
    # the network: "MLP" or "LSTM"
    encoder_hidden_size: int | None = None  # its width; None: that of the embeddings
    encoder_num_layers: int = 2  # layers of the LSTM; the MLP always has three
    encoder_dropout: float = 0.0  # dropout between the layers of the LSTM

    def mistakes(self) -> list[str]:
        wrong, networks = super().mistakes(), list(PromptEncoderReparameterizationType)
        if (asked := self.encoder_reparameterization_type) not in networks:
            allowed = listing(k.value for k in networks)
            wrong.append(f"`encoder_reparameterization_type`={asked!r} is unknown; choose one of {allowed}")
        return wrong


class PromptEncoder(VirtualTokens):
    """The table and its network: (n * submodules, D) -> (n * submodules, D); in inference mode the table alone."""

    def __init__(self, config: PromptEncoderConfig) -> None:
        dim: Any = config.token_dim
        super().__init__(config.num_virtual_tokens * config.num_transformer_submodules, dim)  # type: ignore[operator]
        self.encoder_type = config.encoder_reparameterization_type
        hidden = config.encoder_hidden_size or dim
        if config.inference_mode:
            return
        if self.encoder_type == PromptEncoderReparameterizationType.LSTM:
            layers, dropout = config.encoder_num_layers, config.encoder_dropout
            self.lstm_head = nn.LSTM(dim, hidden, layers, batch_first=True, dropout=dropout, bidirectional=True)
            widths = [2 * hidden, 2 * hidden, dim]
        else:
            widths = [dim, hidden, hidden, dim]
        steps: list[nn.Module] = []
        for inp, out in pairwise(widths):
            steps += [nn.Linear(inp, out), nn.ReLU()]
        self.mlp_head = nn.Sequential(*steps[:-1])

    def network(self, x: Tensor) -> Tensor:
        if hasattr(self, "lstm_head"):
            x = self.lstm_head(x)[0]
        return self.mlp_head(x) if hasattr(self, "mlp_head") else x


class PTuning(PromptMethod):
    """See the head of this file."""

    name, kind = "P_TUNING", "embeds"

    def encoder(self, cfg: PromptEncoderConfig, words: nn.Module) -> VirtualTokens:
        cfg.encoder_hidden_size = cfg.encoder_hidden_size or cfg.token_dim
        return PromptEncoder(cfg)

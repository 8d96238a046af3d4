"""Cartridges: https://arxiv.org/abs/2506.06266

As in prefix tuning, attention reads trained keys and values before those of the input. Here they start as those that
the model makes of a text, and the first of them, on which attention leans, stay as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import ConfigError, listing
from ..files import find
from ..fingerprint import METADATA_KEY, differences
from ..prefix import initialize_kv_prefix_from_past_key_values as initialize_kv_prefix_from_past_key_values
from ..prefix import initialize_kv_prefix_from_text as initialize_kv_prefix_from_text
from ..prefix import prompt_embeddings_from_past_key_values as prompt_embeddings_from_past_key_values
from ..prompt_method import PROMPT_KEY, PromptLearningConfig, PromptMethod, VirtualTokens
from ..save import read, write_adapter
from ..state import WEIGHTS_NAME

SHAPE = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")


@dataclass(kw_only=True)
class CartridgeConfig(PromptLearningConfig, kind="CARTRIDGE"):
    """A cartridge: the keys and values of `num_virtual_tokens` tokens, trained."""

    num_frozen_tokens: int = 1  # how many of the first tokens stay as they are

    def mistakes(self) -> list[str]:
        wrong, frozen, n = super().mistakes(), self.num_frozen_tokens, self.num_virtual_tokens
        whole = self.inference_mode and frozen == n  # in files of PEFT, one that was not trained at all
        if frozen < 0 or (n is not None and frozen >= n and not whole):
            wrong.append(f"`num_frozen_tokens`={frozen} must be at least 0, and below `num_virtual_tokens`={n}")
        return wrong


class CartridgeEncoder(VirtualTokens):
    """Keys and values, (n, layers * 2 * D), for each layer the keys, then the values, of all heads."""

    def __init__(self, config: CartridgeConfig) -> None:
        nn.Module.__init__(self)
        frozen, flat = config.num_frozen_tokens, config.num_layers * 2 * config.token_dim  # type: ignore[operator]
        start = nn.Embedding(config.num_virtual_tokens, flat).weight.detach()  # type: ignore[arg-type]
        self.register_buffer("frozen_embedding", start[:frozen].clone())
        self.trainable_embedding = nn.Parameter(start[frozen:].clone())

    def table(self) -> list[Tensor]:
        return [t for t in (self.get_buffer("frozen_embedding"), self.trainable_embedding) if len(t)]

    def forward(self, indices: Tensor | None = None) -> Tensor:
        """The whole prompt, or these rows of it."""
        prompt = torch.cat([self.get_buffer("frozen_embedding"), self.trainable_embedding])
        return prompt if indices is None else prompt[indices]


class Cartridge(PromptMethod):
    """See the head of this file."""

    name, kind = "CARTRIDGE", "kv"

    def encoder(self, cfg: CartridgeConfig, words: nn.Module) -> VirtualTokens:
        return CartridgeEncoder(cfg)


def compose_cartridge_adapters(
    adapter_paths: Sequence[str | Path], *, output_path: str | Path, safe_serialization: bool = True
) -> None:
    """Write a cartridge that is several after one another, in this order, from their folders.

    Raises `ConfigError` with everything that keeps them from fitting together, before anything is written.
    """
    configs: list[Any] = [PeftConfig.from_pretrained(path) for path in adapter_paths]
    wrong = [] if configs else ["`adapter_paths` is empty"]
    wrong += [] if safe_serialization else ["`safe_serialization=False` would write pickled weights; leave it True"]
    for path, cfg in zip(adapter_paths, configs, strict=True):
        if cfg.kind != "CARTRIDGE":
            wrong.append(f"{path} is a {cfg.kind} adapter")
        elif odd := [k for k in SHAPE if getattr(cfg, k) != getattr(configs[0], k, None)]:
            wrong.append(f"{path} is of another model than {adapter_paths[0]}, by {listing(odd)}")
    if wrong:
        raise ConfigError("cartridges cannot be composed: " + "; ".join(wrong))
    files = [read(find(path, WEIGHTS_NAME)) for path in adapter_paths]
    bases = [metadata[METADATA_KEY] for _, metadata in files if METADATA_KEY in metadata]
    base: Any = json.loads(bases[0]) if bases else None
    if odd := [line.strip() for other in bases[1:] for line in differences(base, other, ())]:
        raise ConfigError(f"cartridges cannot be composed: they were made on different models: {listing(odd)}")
    tables = [tensors[PROMPT_KEY] for tensors, _ in files]
    configs[0].num_virtual_tokens = sum(map(len, tables))
    write_adapter(Path(output_path), configs[0], {PROMPT_KEY: torch.cat(tables)}, base)

"""Cartridges: https://arxiv.org/abs/2506.06266

As in prefix tuning, attention reads trained keys and values before those of the input. Here they start as those that
the model makes of a text, and the first of them, on which attention leans, stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..errors import AdapterError, ConfigError
from ..files import find
from ..prompt_method import PROMPT_KEY, PROMPTS, PromptLearningConfig, PromptMethod, VirtualTokens, into_rows
from ..save import read, write_adapter
from ..state import WEIGHTS_NAME


@dataclass(kw_only=True)
class CartridgeConfig(PromptLearningConfig, kind="CARTRIDGE"):
    """A cartridge: the keys and values of `num_virtual_tokens` tokens, trained."""

    num_frozen_tokens: int = 1  # how many of the first tokens stay as they are

    def mistakes(self) -> list[str]:
        wrong, frozen, n = super().mistakes(), self.num_frozen_tokens, self.num_virtual_tokens
        if frozen < 0 or (n is not None and frozen >= n):
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


def prompt_embeddings_from_past_key_values(past_key_values: Any, *, num_virtual_tokens: int) -> Tensor:
    """The first tokens of a cache as a prefix, (n, layers * 2 * D); of a batch, the first row.

    `past_key_values` is a cache of Transformers, or a sequence of (keys, values), each (batch, heads, tokens, width).
    Raises `AdapterError` when it has fewer tokens.
    """
    held = getattr(past_key_values, "self_attention_cache", past_key_values)
    layers = getattr(held, "layers", None)
    pairs = [(p.keys, p.values) for p in layers] if layers is not None else [tuple(p[:2]) for p in held]
    if (there := pairs[0][0].shape[2]) < num_virtual_tokens:
        raise AdapterError(f"the cache holds {there} tokens, less than `num_virtual_tokens`={num_virtual_tokens}")
    flat = [t[0, :, :num_virtual_tokens].transpose(0, 1).flatten(1) for pair in pairs for t in pair]
    return torch.cat([t.to(flat[0]) for t in flat], dim=1)


@torch.no_grad()
def initialize_kv_prefix_from_past_key_values(
    model: Any, *, adapter_name: str | None = None, past_key_values: Any, num_virtual_tokens: int | None = None
) -> Tensor:
    """Let a prefix adapter (the active one by default) begin with the first tokens of a cache; returns that start."""
    name = adapter_name or model.active_adapters[0]
    cfg = model.peft_config.get(name)
    if cfg is None or cfg.kind not in PROMPTS or PROMPTS[cfg.kind].kind != "kv":
        raise AdapterError(f"{name!r} is no adapter of keys and values (prefix tuning, cartridge)")
    if not (rows := model.prompt_encoder[name].table()):
        raise AdapterError(f"{name!r} computes its prefix by a network, which no cache can set")
    start = prompt_embeddings_from_past_key_values(
        past_key_values, num_virtual_tokens=num_virtual_tokens or cfg.num_virtual_tokens
    )
    if tuple(start.shape) != (sum(map(len, rows)), rows[0].shape[1]):
        wanted = (cfg.num_virtual_tokens, rows[0].shape[1])
        raise AdapterError(f"the cache gives a prefix of {tuple(start.shape)}, and {name!r} is {wanted}")
    into_rows(rows)(start)
    return start


@torch.no_grad()
def initialize_kv_prefix_from_text(
    model: Any,
    tokenizer: Any,
    *,
    text: str,
    adapter_name: str | None = None,
    num_virtual_tokens: int | None = None,
    use_chat_template: bool = True,
    max_length: int | None = None,
) -> Tensor:
    """Let a prefix adapter begin with the keys and values that the base model makes of a text; returns that start.

    With `use_chat_template`, the text is a user's message, where the tokenizer has a template. Raises `AdapterError`
    for a text of too few tokens.
    """
    if use_chat_template and getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    options = {"truncation": True, "max_length": max_length} if max_length else {}
    ids = tokenizer(text, return_tensors="pt", **options)["input_ids"]
    base = model.get_base_model()
    with model.disable_adapter():
        cache = base(input_ids=ids.to(base.device), use_cache=True).past_key_values
    return initialize_kv_prefix_from_past_key_values(
        model, adapter_name=adapter_name, past_key_values=cache, num_virtual_tokens=num_virtual_tokens
    )


def compose_cartridge_adapters(
    adapter_paths: Sequence[str | Path], *, output_path: str | Path, safe_serialization: bool = True
) -> None:
    """Write a cartridge that is several after one another, in this order, from their folders.

    Raises `ConfigError` with everything that keeps them from fitting together, before anything is written.
    """
    configs = [PeftConfig.from_pretrained(path) for path in adapter_paths]
    wrong = [] if configs else ["`adapter_paths` is empty"]
    wrong += [
        f"{p} is a {c.kind} adapter" for p, c in zip(adapter_paths, configs, strict=True) if c.kind != "CARTRIDGE"
    ]
    wrong += [] if safe_serialization else ["`safe_serialization=False` would write pickled weights; leave it True"]
    if wrong:
        raise ConfigError("cartridges cannot be composed: " + "; ".join(wrong))
    tables = [read(find(path, WEIGHTS_NAME))[0][PROMPT_KEY] for path in adapter_paths]
    if len({t.shape[1] for t in tables}) > 1:
        raise ConfigError(f"cartridges cannot be composed: their tokens have {[t.shape[1] for t in tables]} numbers")
    cfg: Any = configs[0]
    cfg.num_virtual_tokens = sum(map(len, tables))
    write_adapter(Path(output_path), cfg, {PROMPT_KEY: torch.cat(tables)}, None)

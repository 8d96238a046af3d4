"""Prefixes that begin as a text: as the keys and values that the base model has made of it."""

from typing import Any

import torch
from torch import Tensor

from .errors import AdapterError
from .prompt_method import PROMPTS, into_rows
from .watch import evaluating


def prompt_embeddings_from_past_key_values(past_key_values: Any, *, num_virtual_tokens: int) -> Tensor:
    """The first tokens of a cache as a prefix, (n, layers * 2 * D).

    `past_key_values` is a cache of Transformers, or a sequence of (keys, values), each (1, heads, tokens, width).
    Raises `AdapterError` when it is of several rows, has fewer tokens, or has let go of the first.
    """
    held = getattr(past_key_values, "self_attention_cache", past_key_values)
    layers = getattr(held, "layers", None)
    pairs = [(p.keys, p.values) for p in layers] if layers is not None else [tuple(p[:2]) for p in held]
    rows, _, there, _ = pairs[0][0].shape
    if rows != 1:
        raise AdapterError(f"the cache is of {rows} rows; a prefix is made of one text")
    if there < num_virtual_tokens:
        raise AdapterError(f"the cache holds {there} tokens, less than `num_virtual_tokens`={num_virtual_tokens}")
    if any(p.get_seq_length() > p.keys.shape[2] for p in layers or ()):
        raise AdapterError("the cache keeps the last tokens only (a sliding window); make it of a shorter text")
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
    if cfg.num_transformer_submodules != 1:
        raise AdapterError(f"{name!r} is of an encoder and a decoder, whose layers share what a cache has for each")
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

    With `use_chat_template`, the text is the system's message, where the tokenizer has a template. The model reads its
    first tokens only, since those that follow do not change their keys. Raises `AdapterError` for a text of too few.
    """
    if use_chat_template and getattr(tokenizer, "chat_template", None):
        message = [{"role": "system", "content": text}]
        ids = tokenizer.apply_chat_template(message, return_tensors="pt", return_dict=True)["input_ids"]
    else:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
    cfg = model.peft_config.get(adapter_name or model.active_adapters[0])
    first = ids[:, :max_length][:, : num_virtual_tokens or getattr(cfg, "num_virtual_tokens", None)]
    base = model.get_base_model()
    with model.disable_adapter(), evaluating(base):
        cache = base(input_ids=first.to(base.device), use_cache=True).past_key_values
    return initialize_kv_prefix_from_past_key_values(
        model, adapter_name=adapter_name, past_key_values=cache, num_virtual_tokens=num_virtual_tokens
    )

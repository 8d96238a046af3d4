"""Attention modules of Transformers, for methods that act where the heads read: on queries and on what they have read.

Such a module hands queries, keys and values to a function that its configuration names. For the time of a call ours is
named there, which asks the one that was: every number format, mask and implementation stays the model's.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import After, BlockSite
from .errors import AdapterError, TargetError

NAME = "trimtab"


class HeadsSite(BlockSite):
    """An attention module: adapters see the queries (batch, heads, tokens, width) and what was read for them.

    What was read, (batch, tokens, heads, width), is what the output projection takes. Raises `TargetError` for a module
    whose attention is not to be had, or whose keys and values are not.
    """

    kind = "heads"
    whole = "what the heads ask for"

    def __init__(self, layer: nn.Module, width: int | None = None) -> None:
        name, parts = type(layer).__name__, set(layer._modules)
        self.fused = name == "GPT2Attention"
        if not (self.fused or parts >= {"k_proj", "v_proj"}) or not hasattr(layer, "head_dim"):
            raise TargetError(f"this {name} does not tell how it makes keys and values; name attention modules")
        if "ALL_ATTENTION_FUNCTIONS" not in _globals(layer) or not hasattr(layer, "config"):
            raise TargetError(f"this {name} computes its attention in a way of its own, which shows no queries")
        norm = getattr(getattr(layer, "k_norm", None), "weight", None)
        if "k_layernorm" in parts or (norm is not None and norm.shape[-1] != layer.head_dim):
            raise TargetError(f"this {name} normalises keys otherwise than head by head")
        super().__init__(layer, width)
        self.scale: float | None = None

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the module makes of tokens (rows, n, inp) without a place: keys and values (rows, heads, n, width)."""
        layer: Any = self.layer
        tokens = tokens.to(self.dtype)
        if self.fused:
            pair = layer.c_attn(tokens).split(layer.split_size, dim=-1)[1:]
        else:
            pair = layer.k_proj(tokens), layer.v_proj(tokens)
        keys, values = (t.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2) for t in pair)
        return getattr(layer, "k_norm", nn.Identity())(keys), values

    def around(self, after: After, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module returns for `x`, with `after(queries, read)` in place of what its heads read.

        In GPT-2 the change is added behind the output projection, which is what files of Hugging Face PEFT mean.
        """
        changes: list[Tensor] = []

        def attend(attention: Callable[..., Any], module: Any, q: Tensor, *rest: Any, **options: Any) -> Any:
            self.scale = options.get("scaling")
            read, weights = attention(module, q, *rest, **options)
            changes.append(after(q, torch.zeros_like(read) if self.fused else read))
            return (read if self.fused else changes[0]), weights

        with attending(layer, attend):
            out = layer(x, *args, **kwargs)
        if not changes:
            raise AdapterError(
                f"this {type(layer).__name__} did not ask for an attention function; use another `attn_implementation`"
            )
        return (out[0] + changes[0].flatten(2), *out[1:]) if self.fused else out


class Named:
    """A configuration that names our attention function, and says all else as the model's does."""

    _attn_implementation = NAME

    def __init__(self, config: Any, attend: Callable[..., Any]) -> None:
        self.config, self.attend = config, attend

    def __getattr__(self, key: str) -> Any:
        return getattr(self.config, key)


@contextmanager
def attending(layer: Any, attend: Callable[..., Any]) -> Iterator[None]:
    """Within it, an attention module calls `attend(the attention function that it would have called, ...)`."""
    _globals(layer)["ALL_ATTENTION_FUNCTIONS"].register(NAME, _attend)
    config = layer.config
    layer.config = Named(config, attend)
    try:
        yield
    finally:
        layer.config = config


def _attend(module: Any, *args: Any, **kwargs: Any) -> Any:
    named, functions = module.config, _globals(module)
    module.config = named.config
    try:
        usual = functions["ALL_ATTENTION_FUNCTIONS"].get_interface(
            named.config._attn_implementation, functions.get("eager_attention_forward")
        )
        return named.attend(usual, module, *args, **kwargs)
    finally:
        module.config = named


def _globals(layer: nn.Module) -> dict[str, Any]:
    """What the file of a module's class knows."""
    return vars(sys.modules[type(layer).__module__])

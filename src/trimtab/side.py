"""Networks beside a model, made as the model is, only smaller: their sizes, their tensors as slots, their caches."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .blocks import repeated
from .errors import AdapterError, ConfigError
from .match import adapter_layers
from .method import Slot

FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
"""What architectures call the width of a feed-forward network in their configurations."""


def stack_of(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The part of a model of Transformers that runs its blocks, and their names. Raises `ConfigError`."""
    names, config = repeated(model), getattr(model, "config", None)
    stacks = {n.rsplit(".", 2)[0] if n.count(".") > 1 else "" for n in names}
    if len(stacks) != 1 or getattr(config, "is_encoder_decoder", False):
        raise ConfigError("a network beside the model needs a model with one stack of blocks, a decoder or an encoder")
    stack = model.get_submodule(stacks.pop())
    if not hasattr(getattr(stack, "config", None), "num_hidden_layers"):
        raise ConfigError(f"{type(stack).__name__} has no configuration by which to build a smaller one beside it")
    return stack, names


def smaller(stack: Any, **sizes: int | None) -> Any:
    """Another such stack with other sizes; None for those that stay. Raises `ConfigError` for sizes that cannot be."""
    config = copy.deepcopy(stack.config)
    feed = next((name for name in FEED_FORWARD if hasattr(config, name)), FEED_FORWARD[0])
    for key, value in sizes.items():
        if value is not None:
            setattr(config, feed if key == "intermediate_size" else key, value)
    if heads := getattr(config, "num_key_value_heads", None):
        config.num_key_value_heads = math.gcd(heads, config.num_attention_heads)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[: config.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        try:
            return type(stack)(config).float()
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"no {type(stack).__name__} can be built with {sizes}: {error}") from error


def parts(name: str, module: nn.Module, *, shared: bool = False, file: str | None = None) -> dict[str, Slot]:
    """The slots of a module that computes; they start as they are. `file`: how their names in a file begin."""

    def begin(part: str) -> Callable[[Tensor, Generator], object]:
        return lambda t, generator: t.copy_(module.get_parameter(part))

    return {
        f"{name}.{part}": Slot(
            name=name, shape=tuple(p.shape), init=begin(part), module=True, part=part, shared=shared,
            file=file and f"{file}.{part}", make=lambda: module,
        )
        for part, p in module.named_parameters()
    }  # fmt: skip


def held_by(model: nn.Module, adapter: str) -> Any:
    """The first of an adapter's layers, which knows what the call in flight is and holds what all share."""
    return next(layer for layer in adapter_layers(model) if adapter in layer.adapters)


def new_cache(config: Any) -> Any:
    """An empty cache for a network with this configuration."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=config)


def beside(
    cache: Any, adapter: str, blocks: int, config: Any, new: int = 0, check: bool = True, own: Any = None
) -> Any:
    """The cache of an adapter's network: layers in the model's cache, behind its own, to be cut and reordered alike.

    `blocks`: how many of the model's own there are; `new`: the tokens that are in these, but not yet in the others;
    `own`: the cache whose layers they shall be. Raises `AdapterError`, with `check`, where the model's cache knows
    tokens that the network has not seen.
    """
    from transformers.cache_utils import Cache

    if not hasattr(cache, "layers"):
        raise AdapterError(f"a network beside the model cannot extend a {type(cache).__name__}; use a DynamicCache")
    where = vars(cache).setdefault("networks", {})
    if adapter not in where:
        while len(cache.layers) < blocks:
            cache.layers.append(cache.layer_class_to_replicate())
        first = len(cache.layers)
        cache.layers.extend((new_cache(config) if own is None else own).layers)
        where[adapter] = first, len(cache.layers)
    own = Cache(layers=cache.layers[slice(*where[adapter])])
    if check and not torch.compiler.is_compiling() and int(own.get_seq_length()) + new != int(cache.get_seq_length()):
        raise AdapterError(f"the cache holds tokens that adapter {adapter!r} has not seen; begin with an empty one")
    return own


def check_checkpointing(call: Mapping[str, Any]) -> None:
    """Refuse a block that runs without a graph within a call that has one (`graph`): no state would carry it on."""
    if call["graph"] and not torch.is_grad_enabled():
        raise AdapterError(
            "gradient checkpointing with use_reentrant=True loses the gradients of a network beside the model; "
            "use gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
        )

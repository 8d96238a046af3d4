"""`quantize_`: put a model's frozen weights into one of our own codecs, in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, TargetError, listing
from ..inject import switches
from ..match import HEADS, Place, hits, suggest, walk
from ..sites import site_type
from .base import Codec
from .layers import Quantized, QuantizedEmbedding, QuantizedLinear
from .nf4 import NF4

KINDS: dict[str, type[Quantized]] = {"linear": QuantizedLinear, "embedding": QuantizedEmbedding}


@torch.no_grad()
def quantize_(model: nn.Module, codec: Codec | None = None, modules: str | Sequence[str] | None = None) -> nn.Module:
    """Replace layers of a model, in place, by frozen ones that store their weight in fewer bits; returns the model.

    Args:
        model: the base model, before adapters are put in.
        codec: how to store weights, as `NF4(double_quant=True)`, `Int8()` or `FP8()`; NF4 by default.
        modules: names (endings) or one regular expression of linear layers and embeddings; all linear layers except
            the heads by default.

    Raises `ConfigError` for what is no codec, and `TargetError` with all that is wrong; nothing is changed then.
    """
    codec = NF4() if codec is None else codec
    if not isinstance(codec, Codec):
        raise ConfigError(f"quantize_: {codec!r} is no codec; pass NF4(), Int8() or FP8(), from trimtab")
    if any(switches(model)):
        raise TargetError("quantize_: the model has adapters already; quantise the base before they are put in")
    places = list(walk(model))
    chosen = linear_layers(model, places) if modules is None else named(modules, places)
    if wrong := [f"{p.name} {why}" for p in chosen if (why := obstacle(model, p))]:
        raise TargetError(
            f"quantize_: {len(wrong)} of {len(chosen)} layers cannot be quantised: {'; '.join(wrong[:8])}"
        )
    done: dict[nn.Module, Quantized] = {}
    for place in chosen:
        layer = place.module
        if layer not in done:
            done[layer] = KINDS[site_type(layer).kind](layer, codec)  # type: ignore[union-attr]
        place.parent._modules[place.key] = done[layer]
    return model


def linear_layers(model: nn.Module, places: Sequence[Place]) -> list[Place]:
    """The linear layers of a model that are called, its heads left out."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        p
        for p in places
        if (site := site_type(p.module)) and site.kind == "linear" and not site.codec and site.gain == 1
        and p.module is not output and p.name.rpartition(".")[2] not in ("lm_head", *HEADS)
    ]  # fmt: skip


def named(modules: str | Sequence[str], places: Sequence[Place]) -> list[Place]:
    """The places that these names mean. Raises `TargetError` for a name that means none."""
    each = [modules] if isinstance(modules, str) else [[m] for m in modules]
    if missing := [m for m in each if not any(hits(p.name, m) for p in places)]:
        wanted = [m if isinstance(m, str) else m[0] for m in missing]
        raise TargetError(f"quantize_: no module is called {listing(wanted)}. {suggest(wanted, places)}")
    return [p for p in places if hits(p.name, modules)]


def obstacle(model: nn.Module, place: Place) -> str | None:
    """Why a layer cannot be quantised, or None."""
    layer: Any = place.module
    site = site_type(layer)
    if site is None or site.kind not in KINDS:
        return f"is a {type(layer).__name__}, neither a linear layer nor an embedding"
    if site.codec or not layer.weight.is_floating_point():
        return "is quantised already"
    if layer.weight.is_meta:
        return "has no values yet (meta device)"
    if not bool(layer.weight.isfinite().all()):
        return "holds NaN or infinity"
    if others := [n for n, m in model.named_modules() if m is not layer and getattr(m, "weight", None) is layer.weight]:
        return f"shares its weight with {listing(others)}, which needs it as it is"
    if site.gain != 1:
        return "is read by its attention, which never calls it"
    if getattr(layer, "max_norm", None):
        return "renormalises its rows (`max_norm`), which changes them"
    return None

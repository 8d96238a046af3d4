"""`ensure_weight_tying`: where an output layer is tied to the input embedding, their adapters are one as well.

The embedding carries the adapter; on the output layer stands a follower, which reads the same tensors transposed.
Modules trained in full share their parameter likewise.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import match
from .errors import ConfigError, listing, warn
from .layer import AdapterLayer
from .match import Place
from .method import Adapter, Method
from .sites import site_of


class Follower(Adapter):
    """An adapter of a tied layer: the tensors are the embedding's; transposed for an output layer."""

    follows = True

    def __init__(self, leader: Adapter, layer: AdapterLayer) -> None:
        slots = leader.method.slots(layer.site, leader.cfg)
        super().__init__(leader.name, leader.method, leader.cfg, layer.site, slots, layer)
        self.leader = leader

    def tensor(self, key: str) -> Tensor:
        """The embedding's tensor that stands for this one."""
        if self.site.kind == self.leader.site.kind:
            return self.leader.tensor(key)
        return self.leader.tensor(self.method.transposed[key]).T

    def turned(self, w: Tensor) -> Tensor:
        """The embedding's weight as this layer's."""
        return w if self.site.kind == self.leader.site.kind else w.T


def tied(model: nn.Module) -> tuple[Place | None, list[Place]]:
    """The place of the input embedding, and those of the layers that hold the very same weight."""
    inputs: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    places = {p.name: p for p in match.walk(model)}
    inner = {name: _core(p.module) for name, p in places.items()}
    source = next((p for n, p in places.items() if inputs is not None and inner[n] is _core(inputs)), None)
    weight = getattr(_core(inputs), "weight", None)
    others = [
        p for n, p in places.items() if inner[n] is not _core(inputs) and getattr(inner[n], "weight", 0) is weight
    ]
    return source, others


def _core(module: Any) -> Any:
    module = getattr(module, "original_module", module)
    return match.bare(module) if isinstance(module, nn.Module) else module


def lead(
    model: nn.Module, cfg: Any, places: Sequence[Place], from_input: bool = False
) -> tuple[list[Place], list[Place]]:
    """The places to adapt and those that only follow: of tied layers the embedding is adapted, whichever was meant.

    `from_input`: layers follow where the embedding itself is meant, whatever the configuration says.
    """
    wanted = getattr(cfg, "ensure_weight_tying", False)
    source, others = tied(model) if wanted or from_input else (None, [])
    names = {p.name for p in (others if wanted else [])} | ({source.name} if source else set())
    meant = [p for p in places if p.name in names]
    if source is None or not others or not meant:
        return list(places), []
    names |= {p.name for p in others}
    rest = [p for p in places if p.name not in names]
    return [source, *rest], others


def lead_modules(model: nn.Module, cfg: Any, places: Sequence[Place]) -> list[Place]:
    """The modules to train in full: where one of tied layers is meant, all of them, the embedding first."""
    led, others = lead(model, cfg, places)
    return [*led[:1], *others, *led[1:]]


def check(model: nn.Module, cfg: Any, method: Method, followers: Sequence[Place], saved: Sequence[Place]) -> None:
    """Warn when nothing that the configuration means is tied. Raises `ConfigError` for a method that cannot follow."""
    for place in () if method.tied else followers:
        site = place.module.site if isinstance(place.module, AdapterLayer) else site_of(place.module)
        if others := sorted(method.slots(site, cfg).keys() - method.transposed.keys()):
            name = type(method).__name__
            raise ConfigError(f"`ensure_weight_tying`: {name} has no {listing(others)} for the transposed, tied weight")
    if cfg.ensure_weight_tying and not followers and not {p.name for p in tied(model)[1]} & {p.name for p in saved}:
        warn("`ensure_weight_tying`: none of the modules that are adapted or trained in full is tied to another")


def follow(place: Place, name: str, leader: AdapterLayer) -> None:
    """Let a tied layer follow the embedding's adapter, in place."""
    current: Any = place.parent._modules[place.key]
    if not isinstance(current, AdapterLayer):
        current = AdapterLayer(current, site_of(current), place.name, leader.router)
        place.parent._modules[place.key] = current
    a = leader.adapters[name]
    if not a.method.tied:
        current.join(Follower(a, current))
        return
    slots = a.method.slots(current.site, a.cfg)
    for slot in slots.values():
        current._modules.setdefault(slot.name, leader._modules[slot.name])
    current.join(Adapter(name, a.method, a.cfg, current.site, slots, current))

"""Groups of options, of a variant or a start: each is the object that one field of `LoraConfig` holds."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self

from ..config import default_of
from ..errors import ConfigError, listing, warn

OPTIONS: dict[str, type["Options"]] = {}
"""The groups by field."""


@dataclass(kw_only=True)
class Options:
    """A group of options; a subclass names its field. A file holds it as an object, and a user may write a dict."""

    start: ClassVar[str] = ""
    """The start that reads it, if one does: it then has defaults when that start is chosen."""

    def __init_subclass__(cls, field: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        OPTIONS[field] = cls

    def mistakes(self) -> list[str]:
        """All contradictions, each a sentence."""
        return []

    def at(self, path: str) -> Self:
        """The same for one module."""
        return self


def groups(cfg: Any) -> Iterator[tuple[str, type[Options], Field[Any]]]:
    """Name, class and declaration of each field of a configuration that holds a group."""
    return ((f.name, OPTIONS[f.name], f) for f in fields(cfg) if f.name in OPTIONS)


def settle(cfg: Any, start: str) -> None:
    """Make the objects that dicts in the fields describe, and those that `start` needs. Raises `ConfigError`."""
    for name, kind, spec in groups(cfg):
        value = getattr(cfg, name)
        given = value != default_of(spec)
        if given and kind.start not in ("", start):
            warn(f"`{name}` has no effect: it is for `init_lora_weights`={kind.start!r}")
        if not given and kind.start != start:
            continue
        value = value if given else {}
        if isinstance(value, Mapping):
            known = [f.name for f in fields(kind)]
            if unknown := value.keys() - set(known):
                raise ConfigError(f"`{name}` has no {listing(sorted(unknown))}; there are {listing(known)}")
            setattr(cfg, name, kind(**value))


def mistakes(cfg: Any) -> list[str]:
    """All that is wrong within the groups of a configuration."""
    wrong = []
    for name, kind, spec in groups(cfg):
        value = getattr(cfg, name)
        if isinstance(value, kind):
            wrong += [f"`{name}`: {text}" for text in value.mistakes()]
        elif value != default_of(spec):
            wrong.append(f"`{name}`={value!r} must be a {kind.__name__}, or a dict of its fields")
    return wrong


def at(cfg: Any, path: str) -> dict[str, Options]:
    """The groups, by field, that are others for the module at this path."""
    held = {name: value for name, kind, _ in groups(cfg) if isinstance(value := getattr(cfg, name), kind)}
    return {name: here for name, value in held.items() if (here := value.at(path)) is not value}


def unset(cfg: Any) -> dict[str, Any]:
    """The fields that hold groups, at their defaults."""
    return {name: default_of(spec) for name, _, spec in groups(cfg)}

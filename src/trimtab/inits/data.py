"""What starts that need data have in common: the layers they look at, and the files that keep what they found."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import match
from ..errors import AdapterError, AdapterFileError, ConfigError, listing
from ..files import write_tensors
from ..layer import AdapterLayer
from ..method import method_of
from ..save import read
from ..sites import Site, site_of
from .split import Split


class Prepared(Split):
    """A start that splits the base weight by what a preparation has noted in the base layer, under `note`.

    The base has to be prepared in the same way before an adapter is loaded, too: its files are relative to the rest.
    """

    note: ClassVar[str]
    preparation: ClassVar[str]

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if site.kind == "embedding":
            return None
        if site.kind != "linear":
            return f"{self.preparation} looks at linear layers only"
        if getattr(site.layer, self.note, None) is None:
            return (
                f"{self.preparation} has not looked at the base; call it first, before loading an adapter too, or load "
                "it with init_lora_weights=True onto a base that was saved as the adapter left it"
            )
        return super().refuse(site, cfg, option)


class Mean:
    """The mean of tensors, as they come."""

    def __init__(self) -> None:
        self.total: Any = 0
        self.count = 0

    def add(self, t: Tensor) -> None:
        """Take another one into account."""
        self.total, self.count = self.total + t, self.count + 1


def means(seen: Mapping[str, Mean], where: str) -> dict[str, Tensor]:
    """The means by layer. Raises `AdapterError` for a layer that had nothing to see in `where`."""
    if unseen := [name for name, mean in seen.items() if not mean.count]:
        raise AdapterError(f"nothing has reached {listing(unseen)} in {where}")
    return {name: mean.total / mean.count for name, mean in seen.items()}


def linear_layers(model: nn.Module, cfg: Any) -> dict[str, Any]:
    """The linear layers of a base model that a configuration means, by path. Raises `AdapterError` for adapted ones."""
    wanted = copy(cfg)
    match.resolve(model, wanted, method_of(wanted))
    found = {p.name: p.module for p in match.targets(model, wanted)}
    if adapted := [name for name, layer in found.items() if isinstance(layer, AdapterLayer)]:
        raise AdapterError(f"{adapted[0]!r} has adapters already; prepare the base model before they are put in")
    return {name: layer for name, layer in found.items() if site_of(layer).kind == "linear"}


@contextmanager
def looking(layers: Mapping[str, nn.Module], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within it, `look(name, x)` sees each input x (..., in) of these layers."""
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, name=name: look(name, args[0].detach()))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def options_of(cfg: Any, field: str, start: str) -> Any:
    """The options of a start. Raises `ConfigError` for a configuration of another."""
    if str(cfg.init_lora_weights).lower() != start:
        raise ConfigError(
            f"`init_lora_weights`={cfg.init_lora_weights!r} is not {start!r}, so there is nothing to prepare"
        )
    return getattr(cfg, field)


def kept(path: str | None, keys: Iterable[str]) -> dict[str, Tensor] | None:
    """The tensors in a file, if it was written already. Raises `AdapterFileError` when it lacks one of these."""
    if path is None or not Path(path).is_file():
        return None
    found, _ = read(Path(path))
    if missing := [k for k in keys if k not in found]:
        raise AdapterFileError(f"{path} was written for other layers: it lacks {listing(missing)}")
    return found


def keep(path: str | None, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, if one is named."""
    if path is not None:
        write_tensors(Path(path), {k: t.contiguous() for k, t in tensors.items()}, {"format": "pt"})

"""What stands around a module that is not adapted but trained: a full copy of it (`modules_to_save`), or some rows.

`trainable_token_indices` is a method like any other (`TokenRows`); its wrapper only gives it the name it has in files.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import AdapterError, ConfigError, listing
from .face import SwitchFace
from .layer import AdapterLayer, Owned
from .method import Method, Slot, constant
from .route import Router
from .sites import Site


class Wrapper(nn.Module):
    """A module of the base model with something trained in its place, by adapter."""


class ModulesToSaveWrapper(SwitchFace, Wrapper):
    """A module beside full trained copies of itself, one an adapter; the active adapter's copy acts."""

    def __init__(self, module: nn.Module, path: str, router: Router) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict()
        self.path, self.router = path, router
        self.active: tuple[str, ...] = ()
        self.enabled = True

    def add(self, name: str) -> None:
        """Give an adapter its copy, which starts equal to the original."""
        twin = copy.deepcopy(self.original_module)
        twin.requires_grad_(True)
        self.modules_to_save.add_module(name, twin)

    def adapter_names(self) -> list[str]:
        """The adapters that have a copy."""
        return list(self.modules_to_save)

    def remove(self, name: str) -> None:
        """Forget an adapter's copy."""
        if name in self.modules_to_save:
            del self.modules_to_save[name]
        self.activate([n for n in self.active if n != name])

    def held(self, names: Sequence[str]) -> tuple[str, ...]:
        """Which of these adapters, one at most, has a copy. Raises `AdapterError` for more."""
        held = tuple(n for n in names if n in self.modules_to_save)
        if len(held) > 1:
            raise AdapterError(f"{self.path!r} is trained in full by {listing(held)}; only one of them can be active")
        return held

    def activate(self, names: Sequence[str], trainable: bool | None = None) -> None:
        """Let the copy of one of these adapters act. Raises `AdapterError` when more than one of them has a copy."""
        self.active = held = self.held(names)
        if trainable is not None:
            for name in self.modules_to_save:
                self.train_adapter(name, trainable and name in held)

    def owned(self, name: str) -> Iterator[Owned]:
        """Where the tensors of an adapter's copy lie."""
        for module in self.modules_to_save[name].modules() if name in self.modules_to_save else ():
            yield from ((module._parameters, key, True) for key in module._parameters)

    def train_adapter(self, name: str, on: bool) -> None:
        """Switch the gradients of one adapter's copy on or off."""
        if name in self.modules_to_save:
            self.modules_to_save[name].requires_grad_(on)

    def enable(self, on: bool) -> None:
        """Let copies act, or the original."""
        self.enabled = on

    def acting(self, name: str | None = None) -> nn.Module:
        """The module that acts now, or for one adapter."""
        names = self.active if name is None else (name,)
        if not self.enabled or not names or names[0] not in self.modules_to_save:
            return self.original_module
        return self.modules_to_save[names[0]]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The acting copy's result; row by row where the rows of the batch have adapters of their own."""
        rows = self.router.rows
        if rows is None:
            return self.acting()(x, *args, **kwargs)
        if x.shape[0] % len(rows):
            raise AdapterError(
                f"`adapter_names` has {len(rows)} names for a batch of {x.shape[0]} rows at {self.path!r}"
            )
        parts = x.split(x.shape[0] // len(rows))
        return torch.cat([self.acting(n)(part, *args, **kwargs) for n, part in zip(rows, parts, strict=True)])

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_") or "modules_to_save" not in self._modules:
                raise
        return getattr(self.acting(), key)


class TokenRows(Method):
    """Some rows of an embedding (and of the output layer tied to it) trained, the others frozen.

    W' = W with rows `index` replaced by `delta`. The configuration is the sequence of indices itself.
    """

    prefix, option = "trainable_tokens_", "trainable_token_indices"

    def indices(self, cfg: Any) -> list[int]:
        """The rows to train."""
        return list(cfg)

    def slots(self, site: Site, cfg: Any) -> dict[str, Slot]:
        if site.kind not in ("embedding", "linear"):
            raise ConfigError(f"token rows need an embedding or a linear layer, not a {site.kind} layer")
        rows, indices = len(self.table(site)), self.indices(cfg)
        if wrong := [i for i in indices if not 0 <= i < rows]:
            raise ConfigError(f"`{self.option}` names rows {listing(wrong)}; the layer has {rows}")
        start, index = self.table(site).detach()[indices], constant(torch.tensor(indices))
        slots = {
            "delta": Slot(name="trainable_tokens_delta", shape=tuple(start.shape), init=constant(start)),
            "index": Slot(name="trainable_tokens_index", shape=(len(indices),), init=index, dtype=torch.long),
        }
        slots["index"].kept = slots["index"].trainable = False
        return slots

    @staticmethod
    def table(site: Site) -> Tensor:
        """The weight as rows of tokens, (tokens, dim)."""
        return site.weight().T if site.kind == "embedding" else site.weight()

    def weight(self, w: Tensor, a: Any) -> Tensor:
        if a.site.kind == "embedding":
            return w.index_copy(1, a.index, a.delta.to(w.dtype).T)
        return w.index_copy(0, a.index, a.delta.to(w.dtype))

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        index = a.index
        if a.site.kind != "embedding":
            b = None if a.site.bias is None else a.site.bias[index].to(x.dtype)
            return y.index_copy(-1, index, F.linear(x, a.delta.to(x.dtype), b).to(y.dtype))
        order = index.argsort()
        at = torch.searchsorted(index[order], x).clamp(max=len(index) - 1)
        hit = index[order][at] == x
        rows = a.site.scaled(F.embedding(order[at], a.delta))
        return torch.where(hit.unsqueeze(-1), rows.to(y.dtype), y)


TOKEN_ROWS = TokenRows()
TokenRows.name = "TRAINABLE_TOKENS"  # not in the class: that would register it as a method of its own


class TrainableTokensWrapper(Wrapper):
    """The name under which token rows stand in memory and in files: `<embedding>.token_adapter`."""

    def __init__(self, layer: AdapterLayer) -> None:
        super().__init__()
        self.token_adapter = layer

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The embedding, or output layer, with its trained rows."""
        return self.token_adapter(x, *args, **kwargs)

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_") or "token_adapter" not in self._modules:
                raise
        return getattr(self.token_adapter, key)

"""The directions in which the inputs of layers vary most, found batch by batch: what EVA asks of data.

An incremental SVD (https://doi.org/10.1007/s11263-007-0075-7) of each layer's inputs about their mean.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..errors import AdapterError, listing

Prepare = Callable[[Tensor, Any, str], Tensor]


class Directions:
    """The k directions `v` (k, in) in which rows vary most, with singular values `s` (k,)."""

    def __init__(self, k: int, tau: float) -> None:
        self.k, self.tau, self.count = k, tau, 0
        self.steady = 0  # how many of the first directions have settled
        self.mean = self.s = self.v = torch.empty(0)
        self.spread = torch.zeros(())  # the sum of squared distances from the mean

    def add(self, x: Tensor) -> None:
        """Take rows (rows, in) into account: by an SVD of them about their mean, of S V, and of how far that moves."""
        mean, parts = x.mean(0), [x - x.mean(0)]
        moved = parts[0].square().sum()
        if self.count:
            weight = self.count * len(x) / (self.count + len(x))
            parts += [self.s[:, None] * self.v, weight**0.5 * (self.mean - mean)[None]]
            moved = moved + parts[-1].square().sum() + self.spread
            mean = (self.count * self.mean + len(x) * mean) / (self.count + len(x))
        _, s, v = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        before, self.s, self.v = self.v, s[: self.k], v[: self.k]
        self.count, self.mean, self.spread = self.count + len(x), mean, moved
        if before.shape == self.v.shape:
            self.steady = int((F.cosine_similarity(before, self.v).abs() >= self.tau).cumprod(0).sum())

    @property
    def shares(self) -> list[float]:
        """The share of the variance that each direction explains, the largest first."""
        return (self.s.square() / self.spread.clamp_min(torch.finfo(self.s.dtype).tiny)).tolist()


class Search:
    """The search of all layers, for `budget` directions; an input that several are given is looked at once."""

    def __init__(
        self,
        layers: dict[str, Directions],
        budget: int,
        prepare: Prepare | Mapping[str, Prepare] | None,
        gather: bool,
    ) -> None:
        self.layers, self.budget, self.prepare, self.gather = layers, budget, prepare, gather
        self.leader: dict[str, str] = {}  # the first of the layers that have the same input
        self.last: tuple[str, Tensor] | None = None
        self.prepared: Any = None
        self.moving: set[str] | None = None  # the leaders whose directions have not settled

    def begin(self, prepared: Any) -> None:
        """Begin a batch; `prepared` is what `prepare` is told of it."""
        self.prepared, self.last = prepared, None

    def look(self, name: str, x: Tensor) -> None:
        """See a layer's input."""
        if name not in self.leader:
            same = self.last is not None and x.data_ptr() == self.last[1].data_ptr() and x.shape == self.last[1].shape
            self.leader[name] = self.leader[self.last[0]] if same and self.last is not None else name
            self.last = name, x
        if self.leader[name] != name or (self.moving is not None and name not in self.moving):
            return
        prepare = self.prepare.get(name) if isinstance(self.prepare, Mapping) else self.prepare
        rows = x.flatten(0, -2) if prepare is None else prepare(x, self.prepared, name)
        rows = gathered(rows) if self.gather else rows
        if len(rows):
            self.layers[name].add(rows.float())

    def settled(self) -> bool:
        """After a batch: whether all directions that are taken have settled. Layers whose have are not looked at on."""
        ranks = self.ranks
        self.moving = {self.leader[name] for name, found in self.found.items() if found.steady < ranks[name]}
        return not self.moving

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer, when those directions are taken that explain most."""
        every = [(share, name) for name, directions in self.found.items() for share in directions.shares]
        taken = Counter(name for _, name in sorted(every, reverse=True)[: self.budget])
        return {name: taken[name] for name in self.layers}

    @property
    def found(self) -> dict[str, Directions]:
        """The directions by layer. Raises `AdapterError` for a layer that has seen nothing."""
        every = {name: self.layers[self.leader.get(name, name)] for name in self.layers}
        if unseen := [name for name, directions in every.items() if not directions.count]:
            raise AdapterError(f"no data has reached {listing(unseen)}")
        return every


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return torch.cat([part.to(rows.device) for part in parts])


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches over and over, until there are none any more."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            return


def placed(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: placed(v, device) for k, v in batch.items()}
    return [placed(v, device) for v in batch] if isinstance(batch, (list, tuple)) else batch

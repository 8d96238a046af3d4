"""FRoD: https://arxiv.org/abs/2512.23485

W = U D V^T takes the weights of like layers (of one category: the last two names) apart together, with V (in, in)
shared, D diagonal and U (out, in) of columns of length one. W' = U (diag(l) + S) V^T, where l (in), which starts at D,
and a few entries of S are trained. A kernel is flattened into `in`; an embedding is taken as it is stored.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, listing
from ..method import Adapter, Slot, normal, zeros
from ..sites import Site
from .factored import Factored
from .targets import VERA_TARGETS

TINY = 1e-6  # what is so much smaller than its like is rounding


@dataclass(kw_only=True)
class FrodConfig(AdapterConfig, kind="FROD"):
    """Full-rank updates by scaling, and a little turning, in a basis that like layers share."""

    shares = ("frod_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    projection_prng_key: int = 0  # seed of the places where S is not zero
    save_projection: bool = True  # keep V and these places in the file; False: make them anew, from the base weights
    frod_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or frod_only
    init_weights: bool = True  # start at W, without effect; False: near it
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    sparse_rate: float = 0.01  # share of S, off its diagonal, that is trained
    regularization_alpha: float = 0.001  # added to matrices that are inverted on the way to V
    progressbar: bool = True  # kept for the file format
    runtime_offload_base_weight: bool = False  # kept for the file format; the base weight is in use here

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if not 0 < self.sparse_rate <= 1:
            wrong.append(f"`sparse_rate`={self.sparse_rate} must be in (0, 1]")
        if self.regularization_alpha < 0:
            wrong.append(f"`regularization_alpha`={self.regularization_alpha} must not be negative")
        return wrong

    def at(self, path: str) -> Self:
        here = copy(super().at(path))
        vars(here)["category"] = category(path)
        return here


class Frod(Factored):
    """See the head of this file."""

    name, prefix, dropout, defaults = "FROD", "frod_", "frod_dropout", VERA_TARGETS | {"vit": ["query", "value"]}

    def prepare(self, cfg: FrodConfig, sites: Mapping[str, Site]) -> None:
        wrong = []
        for kind, like in alike(sites).items():
            widths = sorted({s.matrix[0 if s.kind == "embedding" else 1] for s in like})
            wrong += [f"{kind} ({listing(widths)})"] if len(widths) > 1 else []
        if wrong:
            raise ConfigError(f"layers of one category need inputs of one size, to share a basis: {listing(wrong)}")

    def slots(self, site: Site, cfg: FrodConfig) -> dict[str, Slot]:
        rows, n = site.matrix[::-1] if site.kind == "embedding" else site.matrix
        if n < 2:
            raise ConfigError("a weight with a single column has nothing to turn")
        places = min(max(1, int(cfg.sparse_rate * n * n)), n * (n - 1))
        start = zeros if cfg.init_weights else normal(0.1)
        common: dict[str, Any] = {"part": vars(cfg)["category"], "module": True, "shared": True, "trainable": False}
        common["file"] = None if cfg.save_projection else ""
        signs = None if cfg.save_projection else 1  # V decides on those of U
        return {
            "l": Slot(name="frod_lambda_l", shape=(n,), init=start),
            "s": Slot(name="frod_lambda_s_values", shape=(places,), init=start),
            "V": Slot(name="frod_V", shape=(n, n), signs=signs, **common),
            "places": Slot(name="frod_s_indices", shape=(2, places), dtype=torch.int64, **common),
            "size": Slot(name="frod_s_size", shape=(2,), dtype=torch.int64, **common),
            "U": Slot(name="frod_U", shape=(rows, n), kept=False, signs=signs),
            "D": Slot(name="frod_D", shape=(n,), kept=False),
        }

    def shared(
        self, shapes: Mapping[str, tuple[int, ...]], cfg: FrodConfig, sites: Mapping[str, Site]
    ) -> Mapping[str, Tensor]:
        generator = Generator().manual_seed(cfg.projection_prng_key)
        found = {}
        for kind, like in sorted(alike(sites).items()):
            weights = [matrix(site).to(like[0].device) for site in like]
            found[f"frod_V.{kind}"] = basis(weights, cfg.regularization_alpha)
            n, places = len(found[f"frod_V.{kind}"]), shapes[f"frod_s_indices.{kind}"][1]
            drawn = torch.randperm(n * (n - 1), generator=generator, device="cpu")[:places]
            row, column = drawn // (n - 1), drawn % (n - 1)  # of all but the diagonal, row by row
            found[f"frod_s_indices.{kind}"] = torch.stack([row, column + (column >= row)])
            found[f"frod_s_size.{kind}"] = torch.tensor([n, n], device="cpu")
        return found

    def derive(self, a: Adapter) -> None:
        w = matrix(a.site)
        scaled = torch.linalg.solve(a.V.to(w.dtype), w.T).T
        d = scaled.norm(dim=0)
        seen = d > TINY * d.max()  # the other directions are none of W's, and what they hold is rounding
        a.D.copy_(d * seen)
        a.U.copy_(scaled / d.where(seen, 1) * seen)

    def start(self, a: Adapter) -> None:
        a.l.add_(a.D)

    def factors(self, a: Any) -> tuple[Tensor, Tensor, Tensor]:
        """V^T (n, in), diag(l) + S - D (n, n) and U (out, n); an embedding's turned."""
        middle = torch.diag(a.l - a.D).index_put((a.places[0], a.places[1]), a.s)
        return (a.U.T, middle.T, a.V) if a.site.kind == "embedding" else (a.V.T, middle, a.U)


def category(path: str) -> str:
    """What layers of a kind have in common: their name, and the one before it unless that is a number."""
    names = path.split(".")
    return "_".join([n for n in names[-2:-1] if not n.isdigit()] + names[-1:])


def alike(sites: Mapping[str, Site]) -> dict[str, list[Site]]:
    """Sites by category."""
    return {kind: [s for path, s in sites.items() if category(path) == kind] for kind in map(category, sites)}


def matrix(site: Site) -> Tensor:
    """The weight that is taken apart, (out, in); an embedding as it is stored."""
    w = site.weight().detach().reshape(site.matrix)
    return (w.T if site.kind == "embedding" else w).to(torch.promote_types(w.dtype, torch.float32))


def basis(weights: list[Tensor], alpha: float) -> Tensor:
    """V (in, in) for weights (out, in), by a higher-order cosine-sine decomposition of them one above the other."""
    every, n = torch.cat(weights), weights[0].shape[1]
    q, r = torch.linalg.qr(every)
    if len(r) < n or r.diagonal().abs().min() <= TINY * r.abs().max():  # V would have no inverse
        return torch.linalg.svd(every).Vh.mT
    ridge = alpha * torch.eye(n, dtype=q.dtype, device=q.device)
    inverses = [torch.linalg.inv(part.mT @ part + ridge) for part in q.split([len(w) for w in weights])]
    return r.mT @ torch.linalg.eigh(sum(inverses) / len(weights)).eigenvectors

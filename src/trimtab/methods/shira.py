"""SHiRA: https://arxiv.org/abs/2406.13175

W' = W + s M, where M (out, in) is zero but for r (out + in) trained entries, as many as a LoRA of rank r has. They lie
at random, or where a function of the user's own says. The kernel of a convolution is flattened into `in`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, warn
from ..method import Init, Method, Slot, constant, normal, zeros
from ..sites import Site
from .fourierft import drawn
from .targets import LORA_TARGETS

SHIRA_TARGETS = LORA_TARGETS | {"phi": ["q_proj", "v_proj"]}


@dataclass(kw_only=True)
class ShiraConfig(AdapterConfig, kind="SHIRA"):
    """Sparse high-rank adaptation.

    `config.mask_fn = f` puts the entries where `f(layer, r)`, of the weight's shape, is not zero; with `mask_type`
    "random" it is told `random_seed=` too. The function is not saved, and need not be: the places are in the file.
    """

    positive = ("r",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format
    mask_fn: ClassVar[Callable[..., Tensor] | None] = None

    r: int = 32  # r (out + in) entries are trained
    mask_type: str = "random"  # what `mask_fn` is called, where there is one
    random_seed: int | None = None  # seed of where they lie; None: torch's
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    init_weights: bool = True  # start at zero, without effect; False: normal


class Shira(Method):
    """See the head of this file."""

    name, prefix, defaults = "SHIRA", "shira_", SHIRA_TARGETS

    def prepare(self, cfg: ShiraConfig, sites: Mapping[str, Site]) -> None:
        """Warn of a name for a function that is not there; a file that was made with the function needs none."""
        if cfg.mask_type != "random" and cfg.mask_fn is None and not cfg.inference_mode:
            warn(f"`mask_type`={cfg.mask_type!r} without `config.mask_fn`: the entries lie at random, if no file tells")

    def slots(self, site: Site, cfg: ShiraConfig) -> dict[str, Slot]:
        n, total = cfg.r * sum(site.matrix), math.prod(site.matrix)
        if n > total:
            raise ConfigError(f"`r`={cfg.r} asks for {n} entries of a weight that has {total}; give a smaller one")
        places = at_random(site, cfg) if cfg.mask_fn is None else constant(chosen(site, cfg, n))
        indices = Slot(name="shira_indices", shape=(2, n), init=places, trainable=False, dtype=torch.int32)
        start = zeros if cfg.init_weights else normal()
        return {"values": Slot(name="shira_weight", shape=(n,), init=start), "where": indices}

    def weight(self, w: Tensor, a: Any) -> Tensor:
        out, columns = a.site.matrix
        flat = a.where[0].long() * columns + a.where[1]
        update = torch.zeros(out * columns, dtype=a.values.dtype, device=a.values.device)
        return a.site.add(w, a.scale * update.index_add(0, flat, a.values).view(a.site.shape))


def at_random(site: Site, cfg: ShiraConfig) -> Init:
    """Fill with rows and columns, (2, n), of different entries in their order, drawn from the configuration's seed."""

    def init(t: Tensor, generator: Generator) -> object:
        flat = torch.empty(t.shape[1], dtype=torch.int64)
        drawn(math.prod(site.matrix), cfg.random_seed)(flat, generator)
        return t.copy_(torch.stack(torch.unravel_index(flat.sort().values, site.matrix)))

    return init


def chosen(site: Site, cfg: ShiraConfig, n: int) -> Tensor:
    """Rows and columns, (2, n), of the entries where the user's mask is. Raises `ConfigError` if they are not n."""
    assert cfg.mask_fn is not None
    seed = {"random_seed": cfg.random_seed} if cfg.mask_type == "random" else {}
    given = cfg.mask_fn(site.layer, cfg.r, **seed)
    mask, found = site.stored(given), int(given.count_nonzero())
    if tuple(mask.shape) != site.shape or found != n:
        raise ConfigError(
            f"`mask_fn` gave {tuple(given.shape)} with {found} entries; "
            f"it must have {n}, in the shape of the layer's weight"
        )
    return mask.reshape(site.matrix).nonzero().T

"""(IA)^3: https://arxiv.org/abs/2205.05638

W' = diag(l) W and b' = l b, with l (out, 1); in feed-forward layers, the input is scaled: W' = W diag(l), l (1, in).
"""

import re
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError, listing
from ..method import Method, Slot, normal, ones
from ..sites import Site
from .targets import IA3_FEEDFORWARD, IA3_TARGETS


@dataclass(kw_only=True)
class IA3Config(AdapterConfig, kind="IA3"):
    """Infused adapter by inhibiting and amplifying inner activations: one learned factor a feature."""

    feedforward_modules: str | list[str] | None = None  # whose input is scaled: endings, or a regular expression
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    init_ia3_weights: bool = True  # start at one, without effect; False: normal

    feedforward = False  # whether this is the configuration of a feed-forward layer, see `at`

    def __post_init__(self) -> None:
        if isinstance(self.feedforward_modules, (set, tuple)):
            self.feedforward_modules = sorted(self.feedforward_modules)
        super().__post_init__()

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        inside, targets = self.feedforward_modules, self.target_modules
        if isinstance(inside, str):
            try:
                re.compile(inside)
            except re.error as error:
                wrong.append(f"`feedforward_modules`={inside!r} is not a regular expression: {error}")
        elif inside and isinstance(targets, list) and (outside := [f for f in inside if not _among(f, targets)]):
            wrong.append(
                f"`feedforward_modules` should be a subset of `target_modules`, but {listing(outside)} are not among "
                f"{listing(targets)}; add them to `target_modules` or take them out"
            )
        return wrong

    def to_dict(self) -> dict[str, Any]:
        """The fields; feed-forward modules that lie within a target are named beside it, because PEFT asks for that."""
        values = super().to_dict()
        inside, targets = self.feedforward_modules, self.target_modules
        if isinstance(inside, list) and isinstance(targets, list):
            narrower = [f for f in inside if f not in targets and any(f.endswith(f".{t}") for t in targets)]
            values["target_modules"] = [*targets, *narrower]
        return values

    def at(self, path: str) -> Self:
        here = copy(super().at(path))
        inside = self.feedforward_modules or []
        here.feedforward = bool(re.fullmatch(inside, path) if isinstance(inside, str) else path.endswith(tuple(inside)))
        return here


def _among(name: str, targets: list[str]) -> bool:
    """Whether a module name means modules that one of the targets means."""
    return any(name == t or name.endswith(f".{t}") or t.endswith(f".{name}") for t in targets)


class IA3(Method):
    """See the head of this file."""

    name, prefix, defaults = "IA3", "ia3_", IA3_TARGETS

    def fill(self, cfg: IA3Config, model_type: str | None) -> None:
        super().fill(cfg, model_type)
        if cfg.feedforward_modules is not None:
            return
        if model_type not in IA3_FEEDFORWARD:
            raise ConfigError(
                f"`feedforward_modules` is unset, and IA3 has no default for architecture {model_type!r}; "
                "name those of `target_modules` whose input is to be scaled, or give []"
            )
        targets = cfg.target_modules
        known = IA3_FEEDFORWARD[model_type]
        cfg.feedforward_modules = [f for f in known if not isinstance(targets, list) or _among(f, targets)]

    def slots(self, site: Site, cfg: IA3Config) -> dict[str, Slot]:
        if site.kind == "conv":
            shape = (1, site.inp if cfg.feedforward else site.out, *(1 for _ in site.shape[2:]))
        else:
            shape = (*site.shape[:-2], *((1, site.inp) if cfg.feedforward else (site.out, 1)))
        return {"l": Slot(name="ia3_l", shape=shape, init=ones if cfg.init_ia3_weights else normal())}

    def weight(self, w: Tensor, a: Any) -> Tensor:
        if a.site.kind != "conv":
            return w * a.l
        if not a.cfg.feedforward:
            return w * a.l.transpose(0, 1)
        groups = a.site.inp // w.shape[1]  # of a grouped convolution, each reads a part of the input
        return w * a.l.view(groups, -1, *a.l.shape[2:]).repeat_interleave(w.shape[0] // groups, dim=0)

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return b if b is None or a.cfg.feedforward else b * a.l.flatten()

    def direct(self, site: Site, cfg: IA3Config) -> bool:
        return super().direct(site, cfg) and not (cfg.feedforward and site.kind == "embedding")

    def input(self, x: Tensor, a: Any) -> Tensor:
        return x * _features(a) if a.cfg.feedforward else x

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        return y if a.cfg.feedforward else y * _features(a)


def _features(a: Any) -> Tensor:
    """`l` in the shape that multiplies features: (features, 1, ...) for a convolution, else (features,)."""
    return a.l[0] if a.site.kind == "conv" else a.l.flatten()

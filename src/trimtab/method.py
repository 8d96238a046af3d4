"""What a method is: named tensors (`Slot`), one equation (`Method.weight`), and the view that binds them (`Adapter`).

A method is written in one file of `methods/` and registers itself. Nothing else in the core knows any method by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from . import offload
from .config import AdapterConfig
from .errors import ConfigError
from .form import Form
from .sites import Site

METHODS: dict[str, "Method"] = {}
"""The weight methods by `peft_type`."""

STARTS: dict[str, "Start"] = {}
"""Starts by name, filled by `inits/`."""

Init = Callable[[Tensor, Generator], object]


def zeros(t: Tensor, generator: Generator) -> object:
    """Start at zero: the adapter begins without effect."""
    return t.zero_()


def ones(t: Tensor, generator: Generator) -> object:
    """Start at one."""
    return t.fill_(1.0)


def kaiming(t: Tensor, generator: Generator) -> object:
    """The uniform start of `nn.Linear`: bound sqrt(1 / fan_in)."""
    return nn.init.kaiming_uniform_(t, a=math.sqrt(5), generator=generator)


def normal(std: float = 1.0, mean: float = 0.0) -> Init:
    """A normal start with this standard deviation and mean."""
    return lambda t, generator: t.normal_(mean, std, generator=generator)


def uniform(bound: float) -> Init:
    """A uniform start between -bound and bound."""
    return lambda t, generator: t.uniform_(-bound, bound, generator=generator)


def constant(value: Tensor | float) -> Init:
    """Start at a given number or tensor."""
    return lambda t, generator: t.copy_(value) if isinstance(value, Tensor) else t.fill_(value)


@dataclass(kw_only=True)
class Slot:
    """One tensor of an adapter: its name, shape and start, and where it is kept.

    In memory it is `<layer>.<name>.<adapter>` or, as a module, `<layer>.<name>.<adapter>.<part>`; in a file
    `<layer>.<file>`. A shared slot is held once for the whole model and read by each layer from its top left corner;
    in a file it is `<tuner>.<file>`, in the model's state (if it can be trained) `<tuner>.<name>.<adapter>` besides.
    """

    name: str
    shape: tuple[int, ...]
    init: Init = zeros
    module: bool = False
    part: str = "weight"  # may have dots: a module within the module
    shared: bool = False
    group: str = ""  # layers that give the same word here hold one tensor, each under its own names
    trainable: bool = True
    file: str | None = None  # name in a file, below the layer's (or tuner's); "": in no file; None: as in memory
    dtype: torch.dtype | None = None  # number format; None: the base's, or float32 for a base in half precision
    kept: bool = True  # False: made from the base weight or a seed, on loading too; in no file and no state_dict
    make: Callable[[], nn.Module] | None = None  # of a module that computes: it, in which `part` names the tensor
    signs: int | None = None  # of such a slot: an axis along which vectors may come out mirrored elsewhere, see `signs`

    @property
    def place(self) -> str:
        """The name in memory, the adapter's left out."""
        return f"{self.name}.{self.part}" if self.module else self.name

    def inside(self, adapter: str) -> str:
        """The name in memory, below the layer's or the tuner's."""
        return f"{self.name}.{adapter}.{self.part}" if self.module else f"{self.name}.{adapter}"

    @property
    def key(self) -> str:
        """The name in a file, below the layer's or, of a shared slot, the tuner's."""
        return self.file or self.place

    @property
    def saved(self) -> bool:
        """Whether a file holds it."""
        return self.kept and self.file != ""


class Adapter:
    """One adapter bound to one layer: `a.A`, `a.B`, ... are its tensors, beside `a.cfg`, `a.site` and `a.scale`."""

    follows: ClassVar[bool] = False
    """Whether its tensors are another adapter's."""

    def __init__(self, name: str, method: "Method", cfg: Any, site: Site, slots: dict[str, Slot], layer: Any) -> None:
        self.name, self.method, self.cfg, self.site, self.slots, self.layer = name, method, cfg, site, slots, layer
        self._cast: dict[str, Tensor] | None = None
        self._where: dict[str, tuple[dict[str, Any], str]] = {}

    def __getattr__(self, key: str) -> Tensor:
        if key.startswith("_") or key not in self.slots:
            raise AttributeError(key)
        return self.tensor(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor of one slot, as it is stored (or cast, in a copy made by `to`)."""
        if self._cast is not None:
            return self._cast[key]
        try:
            held, part = self._where[key]
            tensor = held[part]
            return self._find(key) if tensor.is_meta else tensor
        except KeyError:  # first use, or a wrapper (FSDP) took the parameter out of its module
            return self._find(key)

    def _find(self, key: str) -> Tensor:
        slot = self.slots[key]
        owner, part = self.layer.holder(slot, self.name)
        found = offload.get(owner, part)
        if slot.shared or slot.group:  # perhaps by layers on several devices
            return found[tuple(slice(n) for n in slot.shape)].to(self.site.device)
        if part in owner._parameters:
            self._where[key] = (owner._parameters, part)
        return found

    def has(self, key: str) -> bool:
        """Whether the adapter has this slot here (it may depend on the configuration and the layer)."""
        return key in self.slots

    @property
    def scale(self) -> float:
        """The factor before the update; it can be changed while the adapter is in use."""
        return self.layer.scaling[self.name]

    @property
    def depends(self) -> str:
        """What its effect depends on besides a weight; "" where it can be merged."""
        return self.method.depends or self.site.whole

    @property
    def training(self) -> bool:
        """Whether what is computed is for training: never in a copy made by `to`, which is what a merge reads."""
        return self.layer.training and self._cast is None

    @property
    def dtype(self) -> torch.dtype:
        """The number format the adapter computes in: that of its first tensor without one of its own."""
        return self.tensor(next(k for k, s in self.slots.items() if s.dtype is None)).dtype

    @property
    def call(self) -> Mapping[str, Any]:
        """What `Method.before` found out about the model's call in flight."""
        return self.layer.router.calls.get(self.name, {})

    def rows(self, values: Tensor) -> Tensor:
        """Of values by row of the batch, (rows, ...), those of the rows that are computed at the moment."""
        router = self.layer.router
        if router.index is None:
            return values
        each = len(values) // len(router.rows)  # beams of one row of `adapter_names`
        return values.unflatten(0, (-1, each))[router.index.to(values.device)].flatten(0, 1)

    def to(self, dtype: torch.dtype) -> "Adapter":
        """The same adapter with its tensors, detached, in another number format and on the device of the base."""
        other = Adapter(self.name, self.method, self.cfg, self.site, self.slots, self.layer)
        held = {k: self.tensor(k).detach().to(self.site.device) for k in self.slots}
        other._cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in held.items()}
        return other

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on the adapter's input, in training, as its configuration says."""
        if not self.method.dropout or not x.is_floating_point():  # indices of an embedding are not to be dropped
            return x
        return getattr(self.layer, self.method.dropout)[self.name](x)


class Start:
    """Another way to begin an adapter than its slots' own; it registers itself by its name."""

    name: ClassVar[str]
    changes_base: ClassVar[bool] = False
    """Whether it writes to the base weight."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """The slots that it sets for good: they are not trained."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            STARTS[cls.name] = cls()

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        """Why an adapter cannot begin this way on a site, or None; asked before anything is changed."""
        return None

    def __call__(self, a: Any, option: str) -> None:
        """Set the adapter's tensors (which may be on the meta device), and the base weight if it must."""
        raise NotImplementedError


class Method:
    """What a method author writes. `weight` is the definition; everything else has a default or follows from it.

    A variant is a subclass of a method, in a file of its own, that says by `wanted` for which of the method's
    configurations it stands in; it has the method's `name` but does not declare it.
    """

    name: ClassVar[str]
    """The method's `peft_type`."""
    prefix: ClassVar[str]
    """How the names of its tensors begin."""
    dropout: ClassVar[str] = ""
    """The option of the configuration that holds the dropout probability, also its modules' name; "" for none."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Default targets by architecture, where a user names none."""
    product: ClassVar[tuple[str, str] | tuple[()]] = ()
    """Names of the slots (r, in) and (out, r) whose product, scaled, is the update; () where it is no such product."""
    transposed: ClassVar[Mapping[str, str]] = {}
    """For each slot, the one whose transposed tensor makes the same update of the transposed weight."""
    depends: ClassVar[str] = ""
    """What its effect depends on besides the weight, as "the task": then `output` is its definition, there is no
    `weight`, and nothing can be merged. "" for the usual case."""
    on_blocks: ClassVar[bool] = False
    """Whether it can stand on a module as a whole, by `output` alone: see `BlockSite`."""
    block: ClassVar[Any] = None
    """Of one that stands on such modules only: their site, where its adapters act elsewhere than on what comes out."""
    tied: ClassVar[bool] = False
    """Whether an adapter of the input embedding acts, as one, on the layers tied to it too."""
    vectors: ClassVar[bool] = False
    """Whether it can adapt a weight that is a vector, as that of a normalisation is."""
    arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of its own that a call of the model may have; the model itself does not see them."""
    variants: ClassVar[list["Method"]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.variants = []
            METHODS[cls.name] = cls()
        elif "wanted" in cls.__dict__:
            METHODS[cls.name].variants.append(cls())

    def wanted(self, cfg: Any) -> bool:
        """Of a variant: whether a configuration of its method asks for it."""
        return False

    def fill(self, cfg: Any, model_type: str | None) -> None:
        """Set what the user left to the architecture's default; leave `target_modules` unset where there is none."""
        if cfg.target_modules is None and not cfg.target_parameters:
            cfg.target_modules = self.defaults.get(model_type or "")

    def find(self, model: nn.Module, cfg: Any) -> str | list[str] | None:
        """Default targets that the model itself tells, where `fill` has left them unset."""
        return None

    def slots(self, site: Site, cfg: Any) -> dict[str, Slot]:
        """The tensors of an adapter on this site. Raises `ConfigError` where the method cannot stand there."""
        raise NotImplementedError

    def weight(self, w: Tensor, a: Any) -> Tensor:
        """THE definition: the weight (canonical layout) that the adapter turns `w` into."""
        raise NotImplementedError

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        """The bias that the adapter turns `b` into."""
        return b

    def both(self, w: Tensor, b: Tensor | None, a: Any) -> tuple[Tensor, Tensor | None]:
        """`weight` and `bias`, for a bias that depends on the weight that comes in."""
        return self.weight(w, a), self.bias(b, a)

    input: Callable[..., Tensor] | None = None
    """`input(x, a)`: what the base layer reads instead of `x`. Part of an optional cheaper equivalent of
    `weight`; of a module as a whole, what that reads."""
    output: Callable[..., Tensor] | None = None
    """`output(x, y, a)`: the result, from the base layer's `y`. The other part of that equivalent."""

    def direct(self, site: Site, cfg: Any) -> bool:
        """Whether `input`/`output` may replace the definition here."""
        return site.pointwise and (self.input is not None or self.output is not None)

    def reads_weight(self, cfg: Any) -> bool:
        """Whether `output` looks at the base weight, and so cannot follow another adapter on the same layer."""
        return False

    def changes_base(self, cfg: Any) -> bool:
        """Whether `start` writes to the base weight, and so must run before a file is loaded too."""
        return False

    def scaling(self, site: Site, cfg: Any) -> float:
        """The adapter's first `scale`."""
        return 1.0

    def with_ranks(self, cfg: Any, ranks: Mapping[str, int]) -> Any:
        """The configuration with these ranks by layer path, and no scale of its own; of a method with a `product`."""
        raise NotImplementedError

    def doubled(self, cfg: Any) -> Any:
        """The configuration with twice the rank everywhere, at the same scale; of a method with a `product`.

        Raises `ConversionError` for an adapter that needs none, as its base is what it was.
        """
        raise NotImplementedError

    def shared(
        self, shapes: Mapping[str, tuple[int, ...]], cfg: Any, sites: Mapping[str, Site]
    ) -> Mapping[str, Tensor]:
        """The start of shared slots, by their `place`, given each one's largest shape; others begin by their `init`.

        `sites`: those that the adapter is on, by path. Not asked where a file will bring all that layers share.
        """
        return {}

    def in_file(self, a: Adapter) -> Mapping[str, Form]:
        """By name, the slots that a file does not hold as they are, and what it holds for them."""
        return {}

    def start(self, a: Adapter) -> None:
        """Anything to do once the tensors exist and the base weight is known, e.g. a start from its decomposition."""

    def derive(self, a: Adapter) -> None:
        """Fill the slots that are not `kept` and do not follow from their `init`; done on loading too.

        Where a file brings frozen tensors that layers share, it is done once they are there.
        """

    def companions(self, cfg: Any) -> dict[str, str]:
        """Adapters that an adapter works with, by name: the folder or hub id from which each is loaded before it.

        The adapter then stands on the layers that any of them is on.
        """
        return {}

    def trained_along(self, cfg: Any) -> Sequence[str]:
        """The names of companions that are trained when the adapter is."""
        return ()

    def meet(self, model: nn.Module, cfg: Any) -> None:
        """Note in `cfg`, as `prepare` does, what depends on the base model; comes before it. Raises `ConfigError`."""

    def prepare(self, cfg: Any, sites: Mapping[str, Site]) -> None:
        """Check a configuration against all the sites it will adapt, by path. Raises `ConfigError`.

        What depends on the model as a whole (a layer's index, a budget) can be noted in `cfg` for `slots`, under a name
        that is no field: `prepare` comes before `slots`.
        """

    # around a call of the model
    def before(self, model: nn.Module, name: str, cfg: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the layers have to know of a call of the base model, for `a.call`: here, its `arguments`.

        Called before each forward in which adapter `name` acts, each step of a generation too.
        """
        return {k: kwargs[k] for k in self.arguments if kwargs.get(k) is not None}

    def after(self, model: nn.Module, name: str, cfg: Any, output: Any) -> Any:
        """The model's output, after a forward in which adapter `name` acts; a term may be added to its loss."""
        return output

    def after_step(self, layers: Sequence[Any], name: str, cfg: Any, step: int) -> None:
        """Anything to do after the backward pass of training step `step`, before gradients are cleared."""


def method_of(cfg: AdapterConfig) -> Method:
    """The method, or variant, that a configuration asks for. Raises `ConfigError` when none is registered for it."""
    kind = str(getattr(cfg.peft_type, "value", cfg.peft_type))
    if kind not in METHODS:
        raise ConfigError(f"{type(cfg).__name__} (`peft_type`={kind!r}) does not adapt modules of a base model")
    method = METHODS[kind]
    wanted = [v for v in method.variants if v.wanted(cfg)]
    if len(wanted) > 1:
        raise ConfigError(f"{type(cfg).__name__} asks for {' and '.join(type(v).__name__ for v in wanted)}; choose one")
    return wanted[0] if wanted else method

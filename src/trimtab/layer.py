"""The only adapter layer: which adapters act, in what order, in what number format, merged or not, row by row or not.

Adapters on one layer compose in the order of their activation: W -> weight_1(W) -> weight_2(...). A chain whose methods
all offer `input`/`output` runs without building a weight; any other runs by the definition. Fused paths replace a chain
as a whole. Which of these a layer takes is planned when its adapters change, not per call.
"""

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Generator, Tensor, nn

from .errors import AdapterError, MergeError, listing
from .face import LayerFace
from .held import Held, Shared, container, forget, hold, holder_of
from .method import Adapter, Method, Slot
from .route import FAST, FastMode, Plan, Router
from .rows import by_rows
from .sites import Site, Snapshot, site_of

if TYPE_CHECKING:
    from .blocks import BlockSite

log = logging.getLogger("trimtab")


@dataclass
class WeightError:
    """What storing a merged weight lost: the largest and the mean absolute difference to the float32 result."""

    path: str
    largest: float
    mean: float
    codec: str = ""  # the storage that it was quantised to again


def seeded(*names: str) -> Generator:
    """A generator that depends on torch's seed and on names only: starts do not depend on the order of layers."""
    return torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32("/".join(names).encode()))


Dequantize = bool | torch.dtype
"""Whether a merge makes plain layers of quantised ones, and in which number format; True: the one they compute in."""

Owned = tuple[dict[str, Any], str, bool]
"""Where a tensor lies: a module's parameters by name, its name there, and whether it can be trained."""


class AdapterLayer(LayerFace, nn.Module):
    """A base layer with adapters. The tensors of adapter `name` are `<slot>.<name>`; the base is `base_layer`."""

    def __init__(self, base_layer: nn.Module, site: Site, path: str, router: Router) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site, self.path, self.router = site, path, router
        self.adapters: dict[str, Adapter] = {}
        self.scaling: dict[str, float] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.merged_adapters: list[str] = []
        self.follows = False  # whether its tensors are those of another layer (an output layer tied to an embedding)
        self._base: Snapshot | None = None
        self._parked: Snapshot | None = None
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._planned = FastMode.epoch
        if not base_layer.training:
            self.eval()

    # adapters come and go
    def add(
        self,
        name: str,
        method: Method,
        cfg: Any,
        slots: dict[str, Slot],
        shared: dict[str, Shared],
        empty: bool = False,
        autocast: bool = True,
    ) -> None:
        """Give the layer an adapter.

        `empty`: leave its tensors on the meta device, for a file to fill. `autocast`: keep them in float32 where the
        base is in half precision.
        """
        adapter = Adapter(name, method, cfg, self.site, slots, self)
        for slot in slots.values():
            if slot.shared:
                self._modules.setdefault(slot.name, shared[slot.name])
                continue
            filled = empty and slot.saved and not slot.group
            start = self._start(name, slot, torch.device("meta") if filled else self.site.device, autocast)
            if slot.kept:
                hold(self, slot, name, start)
            else:
                part = slot.part if slot.module else ""
                container(self, slot.name, Held).put(name, part, start.data, trainable=False)
        self.join(adapter)

    def join(self, a: Adapter) -> None:
        """Let an adapter whose tensors are there be one of the layer's."""
        if a.method.dropout:
            p = getattr(a.cfg, a.method.dropout)
            dropout = nn.Dropout(p) if p else nn.Identity()
            container(self, a.method.dropout, nn.ModuleDict).add_module(a.name, dropout.train(self.training))
        self.adapters[a.name] = a
        self.scaling[a.name] = a.method.scaling(self.site, a.cfg)
        self._plans.clear()

    def _start(self, name: str, slot: Slot, device: torch.device, autocast: bool) -> nn.Parameter:
        half = self.site.dtype in (torch.bfloat16, torch.float16)
        dtype = slot.dtype or (torch.float32 if autocast and half else self.site.dtype)
        if device.type == "meta":
            return nn.Parameter(torch.empty(slot.shape, dtype=dtype, device=device), requires_grad=slot.trainable)
        t = torch.empty(slot.shape, dtype=slot.dtype or torch.float32, device="cpu")  # the same start on every device
        with torch.no_grad():
            slot.init(t, seeded(self.path, name, slot.name, slot.part))
        return nn.Parameter(t.to(device, dtype), requires_grad=slot.trainable and slot.kept)

    def remove(self, name: str) -> None:
        """Forget an adapter and free its tensors. Raises `MergeError` while it is merged."""
        if name in self.merged_adapters:
            raise MergeError(f"adapter {name!r} is merged into {self.path!r}; unmerge it before deleting it")
        adapter = self.adapters.pop(name, None)
        if adapter is None:
            return
        for slot_name in {s.name for s in adapter.slots.values()} | {adapter.method.dropout} - {""}:
            forget(self._modules.get(slot_name), name)
        self.scaling.pop(name)
        self._plans.clear()
        self.activate([n for n in self.active if n != name])

    def owned(self, name: str, shared: bool = True) -> Iterator[Owned]:
        """Where the parameters of an adapter lie, those that layers share included where they can be trained."""
        for slot in self._parameter_slots(name):
            if shared or not slot.shared:
                owner, key = self.holder(slot, name)
                yield owner._parameters, key, slot.trainable

    def holder(self, slot: Slot, name: str) -> tuple[Any, str]:
        """The module that holds an adapter's tensor, and the tensor's name there."""
        held: Any = self._modules[slot.name]
        return holder_of(held._modules[name], slot.part) if slot.module else (held, name)

    def _parameter_slots(self, name: str) -> list[Slot]:
        adapter = self.adapters.get(name)
        slots = adapter.slots.values() if adapter and not adapter.follows else ()
        return [s for s in slots if s.kept and (s.trainable or not s.shared)]

    def parameters_of(self, name: str) -> Iterator[tuple[Slot, nn.Parameter]]:
        """The parameters of an adapter with their slots, those that layers share left out."""
        own = [slot for slot in self._parameter_slots(name) if not slot.shared]
        for slot, (held, key, _) in zip(own, self.owned(name, shared=False), strict=True):
            yield slot, held[key]

    def activate(self, names: Sequence[str], trainable: bool | None = None) -> None:
        """Let these adapters act, in this order. `trainable`: also let exactly these be trained (or none)."""
        vars(self)["active"] = tuple(names)  # past nn.Module's slow assignment: switching visits every layer
        if trainable is not None:
            for name in self.adapters:
                self.train_adapter(name, trainable and name in names)

    def train_adapter(self, name: str, on: bool) -> None:
        """Switch the gradients of one adapter on or off."""
        for slot, parameter in self.parameters_of(name):
            parameter.requires_grad = on and slot.trainable

    def enable(self, on: bool) -> None:
        """Let adapters act, or step aside as if there were none (merged weights too)."""
        if on == self.enabled:
            return
        if self.merged_adapters and not on:
            if self._base is None:
                raise MergeError(f"{self.path!r} was merged without keeping its base; its adapters cannot be disabled")
            self._parked = self.site.snapshot()
            self.site.restore(self._base)
        if on and self._parked is not None:
            self.site.restore(self._parked)
            self._parked = None
        self.enabled = on
        self._plans.clear()

    # forward
    def plan(self, names: tuple[str, ...]) -> Plan:
        """What to do for these adapters, worked out once."""
        if self._planned != FastMode.epoch:
            self._planned = FastMode.epoch
            self._plans.clear()
        if (plan := self._plans.get(names)) is None:
            plan = self._plans[names] = self._make_plan(names)
        return plan

    def _make_plan(self, names: tuple[str, ...]) -> Plan:
        acting = [self.adapters[n] for n in names if n in self.adapters and n not in self.merged_adapters]
        if not self.enabled or not acting:
            return Plan(self.site, [], True)
        if empty := [
            a.name for a in acting if a.tensor(next(iter(a.slots))).is_meta and self.site.device.type != "meta"
        ]:
            raise AdapterError(
                f"{self.path!r}: {listing(empty)} has no values yet (low_cpu_mem_usage); load them first"
            )
        direct = all(a.method.direct(self.site, a.cfg) for a in acting)
        direct = direct and not any(a.method.reads_weight(a.cfg) for a in acting[1:])
        if not direct and (bound := [a for a in acting if a.depends]):
            raise AdapterError(
                f"{self.path!r}: the effect of {listing(a.name for a in bound)} depends on {bound[0].depends}, "
                f"so it cannot act together with {listing(a.name for a in acting if a not in bound)}, which needs W'"
            )
        plan = Plan(self.site, acting, direct)
        if FastMode.mode == "off":
            plan.reason = "switched off"
            return plan
        reasons = []
        for path in FAST:
            if (why := path.guard(self.site, acting)) is None:
                plan.fast = path
                return plan
            reasons.append(f"{path.name}: {why}")
        plan.reason = "; ".join(reasons)
        if FastMode.mode == "require":
            raise AdapterError(f"no fast path fits {self.path!r} with {listing(names)}: {plan.reason}")
        log.debug("%s: no fast path (%s)", self.path, plan.reason)
        return plan

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base layer's result as the active adapters change it. Shapes are those of the base layer."""
        if x is None:  # a module that is called by keywords
            x = kwargs.pop(self.site.first)
        if self.router.rows is not None:
            return by_rows(self, self.router.rows, x, *args, **kwargs)
        return self.run(self.plan(self.active), x, *args, **kwargs)

    def run(self, plan: Plan, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base layer's result as the adapters of a plan change it."""
        if not plan.adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.site.whole:
            block = cast("BlockSite", self.site)
            return block.around(partial(self.after, plan), self.base_layer, self.ahead(plan, x), *args, **kwargs)
        if plan.fast is not None and (y := plan.fast.run(x, plan)) is not None:
            return y
        if not plan.direct:
            w, b = self._composed(plan.adapters)
            dtype = x.dtype if x.is_floating_point() else self.site.dtype
            return self.site.call(w.to(dtype), None if b is None else b.to(dtype), x, *args, **kwargs)
        steps = []
        for a in reversed(plan.adapters):  # from the outermost adapter inwards
            h = self._cast(x, a)
            steps.append((a, h))
            if a.method.input is not None:
                x = a.method.input(h, a).to(x.dtype)
        y = self.base_layer(x, *args, **kwargs)
        result = y
        for a, h in reversed(steps):
            if a.method.output is not None:
                result = a.method.output(h, result, a)
        return result.to(y.dtype)

    def ahead(self, plan: Plan, x: Tensor) -> Tensor:
        """What a module as a whole reads, as the adapters of a plan change it."""
        for a in reversed(plan.adapters):
            if a.method.input is not None:
                x = a.method.input(self._cast(x, a), a).to(x.dtype)
        return x

    def after(self, plan: Plan, x: Tensor, y: Tensor) -> Tensor:
        """What a module as a whole returned, as the adapters of a plan change it."""
        result = y
        for a in plan.adapters:
            if a.method.output is not None:
                result = a.method.output(self._cast(x, a), result, a)
        return result.to(y.dtype)

    def _cast(self, x: Tensor, a: Adapter) -> Tensor:
        if not x.is_floating_point() or not self.cast_input_dtype_enabled:
            return x
        if torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(a.dtype)

    def _composed(self, adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor | None]:
        w, b = self.site.weight(), self.site.bias
        for a in adapters:
            w, b = a.method.both(w, b, a)
        return w, b

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """The weight (canonical) and bias that the active adapters make of the base, in the base's number format."""
        w, b = self._composed(self.plan(self.active).adapters)
        return w.to(self.site.dtype), None if b is None else b.to(self.site.dtype)

    # merge
    def merged_weight(self, names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The weight and bias with these adapters in them, composed in float32 or more from the layer as it stands."""
        if names and all(self.adapters[n].follows for n in names):  # to the bit, so that the layers stay tied
            a: Any = self.adapters[names[0]]
            led = a.leader.layer
            merged = a.name in led.merged_adapters
            w = led.site.weight().detach() if merged else led.merged_weight(names)[0]
            return a.turned(w), self.site.bias
        dtype = torch.promote_types(self.site.dtype, torch.float32)
        w = self.site.weight().detach().to(dtype)
        b = None if self.site.bias is None else self.site.bias.detach().to(dtype)
        for name in names:
            a = self.adapters[name].to(dtype)
            w, b = a.method.both(w, b, a)
        return w, b

    def check_merge(self, names: Sequence[str], safe: bool, dequantize: Dequantize = False) -> list[str]:
        """What forbids merging these adapters here, each a sentence. `safe`: compute the weight, look for NaN too."""
        if self.site.refusal and names and not dequantize:
            return [
                f"{self.path}: no weight can be stored as {self.site.codec}, because {self.site.refusal}; "
                "merge_and_unload(dequantize=True) makes it a plain layer"
            ]
        for name in names:
            a = self.adapters[name]
            if why := a.depends:
                return [f"{self.path}: the effect of {name!r} depends on {why}, which no weight can hold"]
            for slot, t in ((slot, a.tensor(key)) for key, slot in a.slots.items()):
                if t.is_meta:
                    return [f"{self.path}: {slot.name} of {name!r} has no values yet (meta device)"]
                if not bool(t.isfinite().all()):
                    return [f"{self.path}: {slot.name} of {name!r} holds NaN or infinity"]
        if self.site.bias is None and any((a := self.adapters[n]).method.bias(None, a) is not None for n in names):
            return [f"{self.path}: merging {listing(names)} gives a bias, and the layer has none to hold it"]
        grouped = getattr(self.site, "groups", 1) > 1
        shape = tuple(self.merged_weight(names)[0].shape) if grouped else self.site.shape
        if shape != self.site.shape:
            return [f"{self.path}: the merged weight has shape {shape}, the layer's is {self.site.shape}"]
        if safe:
            w, b = self.merged_weight(names)
            if not all(bool(t.to(self.site.dtype).isfinite().all()) for t in (w, b) if t is not None):
                return [f"{self.path}: the merged weight holds NaN or infinity"]
        return []

    @torch.no_grad()
    def merge_in(self, names: Sequence[str], keep_base: bool = True, dequantize: Dequantize = False) -> WeightError:
        """Put adapters into the base weight; `keep_base` keeps the old tensors so that `unmerge` is exact to the bit.

        `dequantize`: a plain layer takes a quantised one's place, for good. Nothing is checked here: see `check_merge`.
        """
        if self._base is None and keep_base:
            self._base = self.site.snapshot()
        w, b = self.merged_weight(names)
        if dequantize and self.site.codec:
            plain = self.site.plain(w, b)
            self.base_layer = plain.to(dequantize) if isinstance(dequantize, torch.dtype) else plain
            self.site = site_of(self.base_layer)
        else:
            self.site.write(w, b)
        self.merged_adapters += names
        self._plans.clear()
        lost = (self.site.weight().detach().to(w.dtype) - w).abs()
        return WeightError(self.path, float(lost.max()), float(lost.mean()), self.site.codec)

    def unmerge(self) -> None:
        """Take all merged adapters out again: the stored tensors themselves come back, bit for bit."""
        if not self.merged_adapters:
            return
        if self._base is None:
            raise MergeError(f"{self.path!r} was merged without keeping its base and cannot be unmerged")
        self.site.restore(self._base)
        self._base, self._parked = None, None
        self.merged_adapters.clear()
        self._plans.clear()

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_") or key == "base_layer":
                raise
        if found := {name: getattr(a.cfg, key) for name, a in self.adapters.items() if hasattr(a.cfg, key)}:
            return found
        return getattr(self.base_layer, key)

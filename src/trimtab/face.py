"""The low-level face: what other people's code reads of a layer and calls on it, as Hugging Face PEFT named it.

Thin by intent: each is a line or two over what `AdapterLayer` and `ModulesToSaveWrapper` do under their own names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import AdapterError, MergeError, listing, warn

if TYPE_CHECKING:
    from .method import Adapter
    from .sites import Site


def as_list(names: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


class SwitchFace:
    """Of everything that adapters are switched in."""

    active: tuple[str, ...]
    enabled: bool

    if TYPE_CHECKING:

        def activate(self, names: Sequence[str], trainable: bool | None = None) -> None: ...
        def train_adapter(self, name: str, on: bool) -> None: ...
        def enable(self, on: bool) -> None: ...
        def remove(self, name: str) -> None: ...
        def adapter_names(self) -> list[str]: ...

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act."""
        return list(self.active)

    @property
    def active_adapter(self) -> list[str]:
        """The adapters that act."""
        return list(self.active)

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters step aside."""
        return not self.enabled

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Let these adapters act, in this order, and let exactly these be trained (none with `inference_mode`)."""
        self.activate(as_list(adapter_names), trainable=not inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Let adapters act, or step aside."""
        self.enable(enabled)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Switch the gradients of these adapters on or off."""
        for name in as_list(adapter_names):
            self.train_adapter(name, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; the first of those left acts if no other did."""
        was_active = adapter_name in self.active
        self.remove(adapter_name)
        if was_active and not self.active:
            self.activate(self.adapter_names()[:1])


class LayerFace(SwitchFace):
    """Of an adapter layer."""

    adapters: "dict[str, Adapter]"
    scaling: dict[str, float]
    site: "Site"
    path: str
    base_layer: nn.Module
    merged_adapters: list[str]
    cast_input_dtype_enabled: bool = True
    """Whether an adapter's input is cast to the adapter's number format."""

    if TYPE_CHECKING:

        def check_merge(self, names: Sequence[str], safe: bool) -> list[str]: ...
        def merge_in(self, names: Sequence[str], keep_base: bool = True) -> Any: ...

    def adapter_names(self) -> list[str]:
        """The adapters there are."""
        return list(self.adapters)

    def get_base_layer(self) -> nn.Module:
        """The innermost layer, of the base model."""
        layer: Any = self
        while hasattr(layer, "base_layer"):
            layer = layer.base_layer
        return layer

    @property
    def weight(self) -> Tensor:
        """The base layer's weight as it is stored."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return getattr(self.base_layer, "bias", None)

    @property
    def in_features(self) -> int:
        """Size of the input: features, channels, or rows of an embedding."""
        return self.site.inp

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return self.site.out

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:
        """The names under which adapters' tensors stand in the layer, those that all layers share left out."""
        slots = [slot for a in self.adapters.values() for slot in a.slots.values() if not slot.shared]
        return tuple(dict.fromkeys(slot.name for slot in slots))

    # scale
    def initial_scale(self, adapter: str) -> float:
        """The scale that the adapter's configuration asks for."""
        a = self.adapters[adapter]
        return a.method.scaling(self.site, a.cfg)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scale to a multiple of the initial one."""
        if adapter in self.adapters:
            self.scaling[adapter] = scale * self.initial_scale(adapter)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self.active:
            if name in self.adapters:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters, or set it to the initial one."""
        for name in self.active:
            if name in self.adapters:
                self.scaling[name] = self.initial_scale(name) if scale is None else self.scaling[name] / scale

    # merge
    @property
    def merged(self) -> bool:
        """Whether any adapter is merged into the base weight."""
        return bool(self.merged_adapters)

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Put adapters (the active ones by default) into the base weight. Raises `MergeError` with nothing changed."""
        names = self.active_adapters if adapter_names is None else list(adapter_names)
        here = [n for n in names if n in self.adapters and n not in self.merged_adapters]
        if wrong := self.check_merge(here, safe_merge):
            raise MergeError("; ".join(wrong))
        if here:
            self.merge_in(here)
        elif names:
            warn(f"{self.path}: nothing to merge; {listing(names)} are merged already or not on this layer")

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter alone adds to the base weight, in the layout of the layer, computed in float64."""
        if adapter not in self.adapters:
            raise AdapterError(f"{self.path} has no adapter {adapter!r}; there are {listing(self.adapters) or 'none'}")
        a = self.adapters[adapter].to(torch.float64)
        w = self.site.weight().detach().to(torch.float64)
        return self.site.stored(a.method.weight(w, a) - w).to(self.adapters[adapter].dtype)

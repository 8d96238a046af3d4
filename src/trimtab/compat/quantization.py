"""How a base is quantised, under the names that Hugging Face PEFT gave the questions."""

from typing import Any

import torch
from torch import Tensor, nn

from ..layer import AdapterLayer
from ..sites import Site, is_quantized, site_of


class QuantizationBackend:
    """The storage of one quantised layer, as its site knows it; weights are in the layer's own layout."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.backend_name = site.codec
        self.supports_merge = not site.refusal

    def get_base_weight(self) -> Tensor:
        """The weight that is stood for, in the number format that the layer computes in."""
        return self.site.stored(self.site.weight().detach())

    @torch.no_grad()
    def set_base_weight(self, weight: Tensor) -> None:
        """Quantise a weight again, in place of the old one. Raises `MergeError` where the storage does not allow it."""
        self.site.write(self.site.stored(weight))  # what turns one layout into the other turns it back


def resolve_quantization_backend(base_layer: nn.Module, **kwargs: Any) -> QuantizationBackend | None:
    """The storage of a layer, or None for one that is not quantised. No other argument is needed, and none is read."""
    return QuantizationBackend(site_of(base_layer)) if is_quantized(base_layer) else None


def quantization_extra_repr(module: nn.Module) -> str:
    """What is added to the text of an adapter layer: the storage of its base, or ""."""
    codec = module.site.codec if isinstance(module, AdapterLayer) else ""
    return f"quantization_backend={codec}" if codec else ""


def get_quantization_config(model: nn.Module, method: str) -> Any:
    """The quantisation that a Transformers model was loaded with, if it is this one ("gptq", ...)."""
    held = getattr(getattr(model, "config", None), "quantization_config", None)
    kind = getattr(model, "quantization_method", None)
    return held if held is not None and str(getattr(kind, "value", kind)) == method else None


def get_quantization_kwargs(model: nn.Module) -> dict[str, Any]:
    """What has to be told to adapter layers on this model beside the layers themselves: nothing, a site sees it all."""
    return {}

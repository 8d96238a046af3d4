"""How a base is quantised."""

from ..compat.quantization import QuantizationBackend, quantization_extra_repr, resolve_quantization_backend

__all__ = ["QuantizationBackend", "quantization_extra_repr", "resolve_quantization_backend"]

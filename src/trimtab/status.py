"""What state a model's adapters are in: per layer, for the model, and which route each layer takes (`explain`)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .errors import AdapterError
from .fingerprint import standing_for
from .inject import switches
from .layer import AdapterLayer
from .match import adapter_layers
from .model import PeftModel
from .tuner import Tuner

IRREGULAR = "irregular"


@dataclass
class TunerLayerStatus:
    """One adapter layer: what is in it, what acts, what is merged, what is trained, and where it is."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | str]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass
class TunerModelStatus:
    """The model as a whole; "irregular" where its layers do not agree."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | str
    active_adapters: list[str] | str
    merged_adapters: list[str] | str
    requires_grad: dict[str, bool | str]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


def _one(values: list[Any], default: Any) -> Any:
    return default if not values else values[0] if all(v == values[0] for v in values) else IRREGULAR


def _layers(model: nn.Module) -> list[AdapterLayer]:
    if isinstance(model, PeftModel) and model.is_prompt_learning:
        raise AdapterError("the status of layers is of weight adapters; this model has prompt adapters")
    layers = list(adapter_layers(model))
    if not layers:
        raise AdapterError(
            "the model has no adapter layers; was an adapter put in (get_peft_model, inject_adapter_in_model)?"
        )
    return layers


def count(model: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters; quantised and sharded ones count as what they stand for."""
    trainable, seen = 0, dict[int, Tensor]()
    for module in model.modules():
        for p in standing_for(module).values():
            if p is not None and id(p) not in seen:
                seen[id(p)] = p  # held, so that no other takes its id
                trainable += p.requires_grad * _numel(p)
    return trainable, sum(map(_numel, seen.values()))


def _numel(p: Tensor) -> int:
    return p.numel() or getattr(p, "ds_numel", 0)  # DeepSpeed shards its parameters away


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The status of every adapter layer. Raises `AdapterError` for a model that has none."""
    _layers(model)
    base = model.base_model if isinstance(model, PeftModel) else model
    found = []
    for path, layer in base.named_modules():
        if not isinstance(layer, AdapterLayer):
            continue
        tensors = {n: [p for _, p in layer.parameters_of(n)] for n in layer.adapters}
        found.append(
            TunerLayerStatus(
                name=path,
                module_type=f"{next(iter(layer.adapters.values())).method.name.lower()}.{type(layer.get_base_layer()).__name__}",
                enabled=layer.enabled,
                active_adapters=[n for n in layer.active if n in layer.adapters],
                merged_adapters=list(layer.merged_adapters),
                requires_grad={n: _one([p.requires_grad for p in ts], False) for n, ts in tensors.items()},
                available_adapters=sorted(layer.adapters),
                devices={n: sorted({p.device.type for p in ts}) for n, ts in tensors.items()},
                quantization_backend=layer.site.codec or None,
            )
        )
    return found


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The status of the model as a whole. Raises `AdapterError` for a model without adapter layers."""
    layers = get_layer_status(model)
    tuner: Any = model.base_model if isinstance(model, PeftModel) else model
    configs: dict[str, Any] = getattr(tuner, "peft_config", {})
    names = sorted({n for s in layers for n in s.available_adapters})
    trainable, total = count(model)
    return TunerModelStatus(
        base_model_type=type(tuner.model if isinstance(tuner, Tuner) else tuner).__name__,
        adapter_model_type=type(tuner).__name__,
        peft_types={n: c.kind for n, c in configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=_one([m.enabled for m in switches(model)], False),
        active_adapters=_one([s.active_adapters for s in layers if s.active_adapters], []),
        merged_adapters=_one([s.merged_adapters for s in layers], []),
        requires_grad={n: _one([s.requires_grad[n] for s in layers if n in s.requires_grad], False) for n in names},
        available_adapters=names,
        devices={n: sorted({d for s in layers for d in s.devices.get(n, [])}) for n in names},
        quantization_backend=_one([s.quantization_backend for s in layers], None),
    )


@dataclass
class LayerRoute:
    """How one layer computes: its adapters and route, and why no fused path was taken."""

    path: str
    adapters: list[str]
    route: str
    reason: str


class Explanation(list[LayerRoute]):
    """The routes of all layers; printed as a table."""

    def __str__(self) -> str:
        rows = [(r.path, ", ".join(r.adapters) or "-", r.route, r.reason) for r in self]
        head = ("layer", "adapters", "route", "why not fused")
        width = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, width, strict=True)).rstrip() for row in [head, *rows]
        )


def explain(model: nn.Module) -> Explanation:
    """Each adapter layer's adapters, route ("fast:<name>", "shortcut", "definition", "base"), why it is not fused."""
    routes = Explanation()
    for layer in _layers(model):
        plan = layer.plan(layer.active)
        routes.append(LayerRoute(layer.path, [a.name for a in plan.adapters], plan.route, plan.reason))
    return routes

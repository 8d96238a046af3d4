"""What base model an adapter was made on: shape and a few values of every tensor, kept in the adapter's file.

An adapter on the wrong base loads without complaint elsewhere and answers nonsense. The samples tell other weights of
the same architecture apart, and a head that was initialised at random and never saved. They match across number
formats.
"""

import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from .match import modules
from .sites import is_quantized, site_of

Fingerprint = dict[str, tuple[list[int], list[float]]]
"""Shape and sampled values by the tensor's name; no values where they could not be read (quantised, meta, sharded)."""

METADATA_KEY = "trimtab_base"
SAMPLES = 4
TOLERANCE = 0.02
SMALLEST = 1e-3


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the base model, under the names they have without any adapter, tied ones once."""
    found: dict[str, Tensor] = {}
    seen = set()
    for path, module in modules(model):
        if ".modules_to_save." in path or not module._parameters:
            continue
        parts = [p for p in path.split(".") if p not in ("base_layer", "original_module", "token_adapter")]
        for key, parameter in standing_for(module).items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[".".join([*parts, key])] = parameter
    return found


def standing_for(module: nn.Module) -> Mapping[str, Tensor | None]:
    """The parameters of a module; of a quantised one, its weight's shape (on the meta device) for what is stored."""
    if not is_quantized(module):
        return module._parameters
    site = site_of(module)
    return {"weight": site.stored(torch.empty(site.shape, device="meta")), "bias": site.bias}


def fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of a base model; adapters in it do not count."""
    tensors = base_tensors(model)
    readable = {
        k: t.detach().view(-1)
        for k, t in tensors.items()
        if type(t.data) is Tensor and t.dtype.is_floating_point and t.element_size() > 1
        and t.numel() and not t.is_meta and t.is_contiguous()
    }  # fmt: skip
    values: dict[str, list[float]] = {}
    for device in {t.device for t in readable.values()}:
        picked = {
            k: t[:: max(1, len(t) // SAMPLES)][:SAMPLES].float() for k, t in readable.items() if t.device == device
        }
        flat = torch.cat(list(picked.values())).tolist()
        for key, part in picked.items():
            values[key], flat = flat[: len(part)], flat[len(part) :]
    return {k: (list(t.shape), values.get(k, [])) for k, t in tensors.items()}


def dump(print_: Fingerprint, trained: Collection[str]) -> str:
    """The fingerprint as text, without the tensors that the adapter itself trains and holds."""
    kept = {
        k: [shape, [float(f"{v:.4g}") for v in values]]
        for k, (shape, values) in print_.items()
        if not _trained(k, trained)
    }
    return json.dumps(kept, separators=(",", ":"))


def load(text: str) -> Fingerprint:
    """The fingerprint that `dump` wrote."""
    return {name: (shape, values) for name, (shape, values) in json.loads(text).items()}


def differences(mine: Fingerprint, text: str, trained: Collection[str]) -> list[str]:
    """What speaks against the adapter's base (as `dump` wrote it) being this one, each a line."""
    wrong = []
    for name, (shape, values) in load(text).items():
        if _trained(name, trained):
            continue
        if name not in mine:
            wrong.append(f"  {name}: the adapter's base has it, this one has not")
            continue
        my_shape, my_values = mine[name]
        if my_shape != shape:
            wrong.append(f"  {name}: the adapter's base has shape {tuple(shape)}, this one {tuple(my_shape)}")
        elif values and my_values and not _alike(values, my_values):
            shown = [float(f"{v:.4g}") for v in my_values]
            wrong.append(f"  {name}: other values ({values} there, {shown} here)")
    return wrong


def _alike(theirs: list[float], mine: list[float]) -> bool:
    pairs = list(zip(theirs, mine, strict=True))
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b), SMALLEST) or str(a) == str(b) for a, b in pairs)


def _trained(name: str, trained: Collection[str]) -> bool:
    return any(f"{t}." in name for t in trained)  # as `modules_to_save` means it: any ending of a module's path

"""What an adapter derives from the base and its file does not hold: on loading it has to come out as it was.

Singular vectors may come out with the other sign on another machine, and what was trained beside them would then mean
something else. So a file notes of each such vector where its largest entry is and what it is; of whole numbers, a
checksum. Mirrored vectors are turned back, anything else is refused. Files without the note are taken as they are.
"""

import json
import zlib

import torch
from torch import Tensor, nn

from .errors import AdapterFileError, warn
from .fingerprint import SMALLEST, TOLERANCE
from .match import adapter_layers

METADATA_KEY = "trimtab_derived"

Mark = list[list[float]]
"""Place and value of the largest entry of each vector, two lists; of whole numbers, one list of one checksum."""


def derived(model: nn.Module, name: str) -> dict[str, tuple[Tensor, int]]:
    """By key, all that adapter `name` derives and that could come out otherwise, and the axis of its vectors."""
    found: dict[str, tuple[Tensor, int]] = {}
    for layer in adapter_layers(model):
        a = layer.adapters.get(name)
        for slot in a.slots.values() if a is not None and not a.follows else ():
            if slot.signs is not None and not slot.saved:
                owner, part = layer.holder(slot, name)
                key = slot.place if slot.shared else f"{layer.path}.{slot.place}"
                found[key] = getattr(owner, part), slot.signs
    return {key: held for key, held in found.items() if not held[0].is_meta}


def vectors(tensor: Tensor, axis: int) -> Tensor:
    """The vectors along an axis, as rows (n, size)."""
    return tensor.detach().float().cpu().movedim(axis, 0).flatten(1)


def mark(tensor: Tensor, axis: int) -> Mark:
    """What is noted of a derived tensor."""
    if not tensor.is_floating_point():
        return [[zlib.crc32(str(tensor.tolist()).encode())]]
    rows = vectors(tensor, axis)
    place = rows.abs().argmax(dim=1, keepdim=True)
    return [place.flatten().tolist(), [float(f"{v:.4g}") for v in rows.gather(1, place).flatten().tolist()]]


def note(model: nn.Module, name: str) -> str:
    """What the file of adapter `name` notes; "" where nothing is derived that could come out otherwise."""
    marks = {key: mark(tensor, axis) for key, (tensor, axis) in derived(model, name).items()}
    return json.dumps(marks, separators=(",", ":")) if marks else ""


class Signs:
    """How what adapter `name` derives here compares to what `note` wrote: what is `wrong`, each a line, or turned."""

    def __init__(self, model: nn.Module, name: str, text: str) -> None:
        self.wrong: list[str] = []
        self.turned: list[tuple[Tensor, Tensor]] = []
        marks: dict[str, Mark] = json.loads(text)
        for key, (tensor, axis) in derived(model, name).items() if marks else ():
            if key not in marks or not tensor.is_floating_point():
                self.wrong += [f"  {key}: other choices"] if marks.get(key) != mark(tensor, axis) else []
            else:
                self._compare(key, tensor, axis, *marks[key])

    def _compare(self, key: str, tensor: Tensor, axis: int, places: list[float], values: list[float]) -> None:
        rows, place, wanted = vectors(tensor, axis), torch.tensor(places).long(), torch.tensor(values)
        if len(place) != len(rows) or int(place.max()) >= rows.shape[1]:
            self.wrong.append(f"  {key}: {len(place)} vectors there, {len(rows)} here")
            return
        found = rows.gather(1, place.unsqueeze(1)).flatten()
        largest = torch.maximum(found.abs(), wanted.abs())
        off = (found.abs() - wanted.abs()).abs() > TOLERANCE * largest + SMALLEST * largest.max()
        if off.any():
            self.wrong.append(f"  {key}: {int(off.sum())} of {len(off)} vectors are others")
        mirrored = ~off & (found * wanted < 0)
        signs = torch.where(mirrored, -1.0, 1.0).view([-1 if i == axis else 1 for i in range(tensor.dim())])
        self.turned.append((tensor, signs.to(tensor)))

    def check(self, strict: bool) -> None:
        """Raise, or warn, when something came out as something else."""
        if self.wrong:
            text = "\n".join(["what the adapter derives from its base came out otherwise here:", *self.wrong[:10]])
            if strict:
                raise AdapterFileError(
                    f"{text}\nIts base may have been loaded in another number format. Nothing was loaded. strict=False "
                    "loads all the same."
                )
            warn(text)

    @torch.no_grad()
    def turn(self) -> None:
        """Turn the vectors that came out mirrored."""
        for tensor, signs in self.turned:
            tensor.mul_(signs)

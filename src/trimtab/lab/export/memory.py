"""What a merge needs of the machine's memory, before it begins."""

import json
from pathlib import Path
from typing import Any

from trimtab.lab.export.finished import Finished
from trimtab.lab.export.streaming import SHARD
from trimtab.lab.origin import model_files

SLACK = 1.2
"""What is needed besides the tensors themselves."""


def plan(finished: Finished) -> dict[str, Any]:
    """Bytes that a merge needs in memory and shard by shard, and the bytes that are free.

    In memory there are the model and one layer's weight in float32; shard by shard, a shard and that weight, twice.
    """
    import psutil

    sizes = _tensors(finished)
    largest = 4 * max(sizes.values(), default=0)  # if it were stored in one byte a number
    whole = sum(sizes.values())
    return {
        "in_memory": round(SLACK * (whole + largest)),
        "by_shards": round(SLACK * (2 * min(whole, SHARD) + 2 * largest)) if sizes else None,
        "available": psutil.virtual_memory().available,
    }


def _tensors(finished: Finished) -> dict[str, int]:
    """Bytes of each tensor in the safetensors files of the base; none where it has no such files here."""
    folder = model_files(finished.source, finished.settings.model.revision)
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        found |= _sizes(path)
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each tensor, from the header of a safetensors file: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    ends = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in ends.items()}

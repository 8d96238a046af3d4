"""Merges an adapter into its base, and proves that the model on disk computes what the adapter model computed."""

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.text import Text

from trimtab.lab.errors import RunError
from trimtab.lab.export import memory, streaming
from trimtab.lab.export.finished import Finished, weights_on_disk
from trimtab.lab.export.places import new_folder
from trimtab.lab.export.proof import Observed, Proof, compare, observe, tolerance_of
from trimtab.lab.files import write_json
from trimtab.lab.measure import peak_memory
from trimtab.lab.text import size

EXAMPLES = 32


def merge(
    folder: Path,
    out: Path,
    console: Console,
    *,
    tolerance: float | None = None,
    examples: int = EXAMPLES,
    by_shards: bool | None = None,
) -> dict[str, Any]:
    """Write the merged model of `runs/<name>/<title>` into a new folder, with `merge.json`; returns what that holds.

    Args:
        folder: of the finished method.
        out: the new folder.
        console: where the numbers go.
        tolerance: the largest logit gap that is accepted, relative to the logits' size; by number format if None.
        examples: how many test examples to compare on.
        by_shards: keep the base on disk and write the model shard by shard; if None, where memory is too small.

    Raises:
        RunError: there is nothing to merge, or it cannot be merged in this way.
        ProofError: the written model computes something else; nothing is left in `out`.
    """
    finished = Finished.read(folder)
    finished.require_weights("merge")
    needs = memory.plan(finished)
    if by_shards is None:
        by_shards = needs["by_shards"] is not None and needs["in_memory"] > needs["available"]
    if by_shards and needs["by_shards"] is None:
        raise RunError(f"{finished.source} has no safetensors files here, so it cannot be read shard by shard")
    console.print(Text(_needed(needs, by_shards)))
    with new_folder(out) as place, TemporaryDirectory(dir=place.parent) as spare:
        if by_shards:
            with weights_on_disk(Path(spare)):
                first, done = _write_by_shards(finished, place, examples, console)
                proof = _read_back(finished, place, examples, first, tolerance)
        else:
            first, done = _write(finished, place, examples, console)
            proof = _read_back(finished, place, examples, first, tolerance)
        proof.require(f"the merged model in {out}")
        needs |= {"peak": peak_memory()["rss"]}
        told = {"base": finished.source, "adapter": str(folder), "by_shards": by_shards, **done}
        told |= {"proof": proof.as_json(), "memory": needs}
        write_json(place / "merge.json", told)
    console.print(Text(_said(done, proof, needs)))
    console.print(Text(f"The merged model is in {out}; the numbers are in {out / 'merge.json'}"), soft_wrap=True)
    return told


def _write(finished: Finished, place: Path, examples: int, console: Console) -> tuple[Observed, dict[str, Any]]:
    """Merge in memory, and write; what the adapter model made of the examples, and what the merge lost."""
    loaded = finished.tuned()
    rows = finished.rows(loaded, examples)
    with console.status("the adapter model answers"):
        first = observe(loaded.model, finished.settings.task, loaded.processor, rows)
    model = loaded.model
    quantised = any(layer.site.codec for layer in model.base_model.layers)
    again = model.base_model.merge_adapter() if quantised else None
    with console.status("merges"):
        merged = model.merge_and_unload(safe_merge=True, dequantize=quantised)
    done = {"weight_error": _error(model.base_model.merge_report), "dequantised": quantised}
    if again is not None:
        done["weight_error_if_quantised_again"] = _error(again)
        dequantise(merged)
    merged.save_pretrained(place)
    loaded.processor.save_pretrained(place)
    return first, done


def _write_by_shards(
    finished: Finished, place: Path, examples: int, console: Console
) -> tuple[Observed, dict[str, Any]]:
    """The same with the base's weights on disk, one layer and one shard in memory at a time."""
    if finished.adapter and finished.adapter.quantize:
        raise RunError("a base that is quantised on loading cannot be merged shard by shard; merge it in memory")
    loaded = finished.tuned()
    streaming.refuse(loaded.model)
    rows = finished.rows(loaded, examples)
    with console.status("the adapter model answers, its weights read from disk layer by layer"):
        first = observe(loaded.model, finished.settings.task, loaded.processor, rows)
    with console.status("merges layer by layer"):
        errors = streaming.write(loaded.model, place)
    loaded.processor.save_pretrained(place)
    largest = max((error.largest for error in errors), default=0.0)
    mean = sum(error.mean for error in errors) / max(1, len(errors))
    return first, {"weight_error": {"layers": len(errors), "largest": largest, "mean": mean}, "dequantised": False}


def _read_back(finished: Finished, place: Path, examples: int, first: Observed, tolerance: float | None) -> Proof:
    """Load what was written as a user would, and compare."""
    gc.collect()
    loaded = finished.base(str(place))
    rows = finished.rows(loaded, examples)
    second = observe(loaded.model, finished.settings.task, loaded.processor, rows)
    limit = tolerance_of(loaded.model) if tolerance is None else tolerance
    return compare(first, second, limit)


def dequantise(model: Any) -> None:
    """Make plain layers, in place, of the layers that are still quantised."""
    from trimtab.sites import is_quantized, site_of

    for path, module in list(model.named_modules()):
        if is_quantized(module):
            site = site_of(module)
            model.set_submodule(path, site.plain(site.weight().detach(), site.bias))


def _error(report: Any) -> dict[str, Any]:
    return {"layers": len(report.layers), "largest": report.largest, "mean": report.mean}


def _needed(needs: dict[str, Any], by_shards: bool) -> str:
    shards = "unknown" if needs["by_shards"] is None else size(needs["by_shards"])
    way = "shard by shard" if by_shards else "in memory"
    return (
        f"needs about {size(needs['in_memory'])} in memory, {shards} shard by shard; "
        f"{size(needs['available'])} are free: merges {way}"
    )


def _said(done: dict[str, Any], proof: Proof, needs: dict[str, Any]) -> str:
    error = done["weight_error"]
    lines = [f"merged {error['layers']} layers; weight error: largest {error['largest']:.3g}, mean {error['mean']:.3g}"]
    if again := done.get("weight_error_if_quantised_again"):
        lines.append(
            f"the base was quantised; the model is written in full. Quantised again, its weights would be off by "
            f"{again['largest']:.3g} at most, {again['mean']:.3g} on average"
        )
    return "\n".join([*lines, str(proof), f"peak memory {size(needs['peak'])}"])

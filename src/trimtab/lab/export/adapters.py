"""Adapters as files for other readers: as they are, or as LoRA; read back and compared by their effect."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

import trimtab
from trimtab.lab.errors import RunError
from trimtab.lab.export.finished import Finished, with_model
from trimtab.lab.export.merge import EXAMPLES, dequantise
from trimtab.lab.export.places import new_folder
from trimtab.lab.export.proof import Observed, Proof, compare, observe, tolerance_of
from trimtab.lab.files import read_json, write_json
from trimtab.lab.text import size

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""
CONVERSION_ERROR = 0.05
"""How much of the update's norm a conversion to LoRA may lose before it has to be asked for by a larger tolerance."""


def export_peft(folder: Path, out: Path, console: Console, tolerance: float | None = None, **_: Any) -> list[str]:
    """Write the adapter in PEFT's format, and read it back with PEFT where that is installed."""
    finished = Finished.read(folder)
    finished.require_adapter("write")
    with new_folder(out) as place, console.status("writes the adapter and reads it back"):
        loaded = finished.tuned()
        rows = finished.rows(loaded, EXAMPLES)
        first = observe(loaded.model, finished.settings.task, loaded.processor, rows)
        limit = tolerance_of(loaded.model) if tolerance is None else tolerance
        loaded.model.save_pretrained(place)
        loaded.processor.save_pretrained(place)
        said, told = _read_back(finished, place, rows, first, limit)
        write_json(place / "export.json", {"adapter": str(folder), "to": "peft", **told})
    return said


def export_vllm(
    folder: Path, out: Path, console: Console, tolerance: float | None = None, rank: int | None = None, **_: Any
) -> list[str]:
    """Write the adapter as the LoRA that vLLM serves, converted where it is another method; tell how to serve it."""
    finished = Finished.read(folder)
    method = finished.require_weights("convert")
    loaded = finished.tuned()
    if not getattr(loaded.model.get_base_model(), "can_generate", bool)():
        raise RunError(
            f"{folder}: {type(loaded.model.get_base_model()).__name__} generates nothing, and vLLM serves adapters of "
            f"generators; `trimtab export {folder} --to hf OUT` writes a model for its pooling tasks"
        )
    with new_folder(out) as place, console.status("writes the adapter and reads it back"):
        rows = finished.rows(loaded, EXAMPLES)
        first = observe(loaded.model, finished.settings.task, loaded.processor, rows)
        wrong = why_not_vllm(loaded.model.peft_config["default"])
        error = 0.0
        if wrong or rank:
            error, rank = _convert(loaded.model, place, rank, CONVERSION_ERROR if tolerance is None else tolerance)
        else:
            loaded.model.save_pretrained(place)
        loaded.processor.save_pretrained(place)
        limit = max(tolerance_of(loaded.model) if tolerance is None else tolerance, 4 * error)
        said, told = _read_back(finished, place, rows, first, limit)
        config = read_json(place / "adapter_config.json")
        converted = bool(wrong or rank)
        told |= {"converted_from": method.kind if converted else None, "conversion_error": error}
        write_json(place / "export.json", {"adapter": str(folder), "to": "vllm", **told})
    if converted:
        why = "; ".join(wrong) or "a rank was asked for"
        said.insert(
            0, f"converted to LoRA of rank {config['r']} ({why}): at most {error:.2%} of a layer's update is lost"
        )
    return [*said, "", *serving(finished, out, config)]


def why_not_vllm(config: Any) -> list[str]:
    """What of a configuration vLLM does not serve."""
    if config.kind != "LORA":
        return [f"vLLM serves LoRA only, not {config.kind}"]
    plain = type(config)(r=config.r, lora_alpha=config.lora_alpha)
    wrong = []
    for field in ("use_dora", "modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern",
                  "lora_bias", "bias", "target_parameters", "layer_replication", "fan_in_fan_out"):  # fmt: skip
        if (value := getattr(config, field, None)) and value != getattr(plain, field, None):
            wrong.append(f"vLLM has no `{field}`")
    if config.r > VLLM_RANKS[-1]:
        wrong.append(f"vLLM has ranks up to {VLLM_RANKS[-1]}, not {config.r}")
    return wrong


def serving(finished: Finished, out: Path, config: dict[str, Any]) -> Iterator[str]:
    """The command that serves a base with an adapter."""
    most = next(rank for rank in VLLM_RANKS if rank >= config["r"])
    name = finished.folder.name
    yield "Serve it with:"
    yield (f"  vllm serve {finished.source} --enable-lora --lora-modules {name}={out.resolve()} --max-lora-rank {most}")
    yield f"and ask for the model {name!r}. vLLM itself is not run here; the files were read back as told above."


def _convert(model: Any, place: Path, rank: int | None, most: float) -> tuple[float, int]:
    """Write the adapter as LoRA of a rank, or of the smallest of vLLM's that loses little enough."""
    config = model.peft_config["default"]
    if kept := getattr(config, "modules_to_save", None):
        raise RunError(
            f"modules that are trained in full ({', '.join(kept)}) cannot be served as an adapter; use --to hf"
        )
    widest = min(min(layer.site.matrix[-2:]) for layer in model.base_model.layers)
    ranks = [rank] if rank else [each for each in VLLM_RANKS if each <= widest] + [widest]
    if rank and rank > VLLM_RANKS[-1]:
        raise RunError(f"vLLM has ranks up to {VLLM_RANKS[-1]}; found --rank {rank}")
    error = 1.0
    for each in sorted({each for each in ranks if each <= VLLM_RANKS[-1]}):
        done = trimtab.convert_to_lora(model, each)
        error = done.largest
        if error <= most:
            trimtab.save_as_lora(place, model, each)
            return error, each
    raise RunError(
        f"as LoRA of rank {each}, up to {error:.1%} of a layer's update would be lost, and {most:.1%} is allowed; "
        "give a larger --rank or --tolerance, or merge instead (--to hf)"
    )


def _read_back(
    finished: Finished, place: Path, rows: list[dict[str, Any]], first: Observed, limit: float
) -> tuple[list[str], dict[str, Any]]:
    """Load a written adapter with each reader there is, and compare its outputs; what to say, and what to write."""
    said, proofs = [], {}
    kind = finished.require_adapter("read").config.kind
    readers: dict[str, Any] = {"trimtab": trimtab}
    if not find_spec("peft"):
        said.append("PEFT is not installed here, so it has not read the adapter; `pip install peft` and export again")
    elif read_json(place / "adapter_config.json")["peft_type"] not in import_module("peft").PeftType.__members__:
        said.append(f"the PEFT that is installed here has no {kind}, so only Trimtab reads this adapter")
    else:
        readers["peft"] = import_module("peft")
    for name, reader in readers.items():
        proof = proofs[name] = _outputs(finished, place, rows, first, limit, reader)
        proof.require(f"the adapter, as {name} reads it,")
        said += [f"read back by {name}:", str(proof)]
    bytes_ = (place / "adapter_model.safetensors").stat().st_size
    said.append(f"adapter_model.safetensors is {size(bytes_)}")
    return said, {"proofs": {name: proof.as_json() for name, proof in proofs.items()}}


def _outputs(
    finished: Finished, place: Path, rows: list[dict[str, Any]], first: Observed, limit: float, reader: Any
) -> Proof:
    base = finished.quantised_base()
    dequantise(base.model)  # the values of the codec, in layers that any reader knows
    model = reader.PeftModel.from_pretrained(base.model, str(place))
    loaded = with_model(base, model.eval())
    return compare(first, observe(loaded.model, finished.settings.task, loaded.processor, rows), limit)

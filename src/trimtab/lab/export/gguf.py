"""A LoRA adapter as a GGUF file for llama.cpp, written and read back with the `gguf` package.

The file says `general.type = adapter`, `adapter.type = lora`, the base's architecture and `adapter.lora.alpha`; each
adapted weight has `<its GGUF name>.lora_a` (r, in) and `.lora_b` (out, r), whose product times alpha / r is the update.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import trimtab
from trimtab.lab.errors import RunError
from trimtab.lab.export.finished import Finished
from trimtab.lab.export.places import new_folder
from trimtab.lab.export.proof import ProofError
from trimtab.lab.files import write_json

ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
}
"""llama.cpp's architecture for each model type whose linear weights it keeps as they are, but for `ROTATED`."""
ROTATED = {"LLAMA": ("q_proj", "k_proj")}
"""Weights whose rows llama.cpp keeps in another order: the two halves of each head, interleaved."""
TOLERANCE = 1e-5
"""How far the update in the file may be off, relative to its norm."""


@dataclass(frozen=True)
class Pair:
    """The update of one weight: scale * B A."""

    module: str
    """Path of the layer in the base model."""
    A: np.ndarray
    B: np.ndarray
    scale: float


def export(folder: Path, out: Path, console: Console, rank: int | None = None, **_: Any) -> list[str]:
    """Write a LoRA adapter as `adapter.gguf` in a new folder; read it back and compare each update."""
    finished = Finished.read(folder)
    finished.require_weights("write as GGUF")
    if not find_spec("gguf"):
        raise RunError(
            "GGUF files are written with the package gguf, which is not installed: pip install 'trimtab[gguf]'"
        )
    model = finished.tuned().model
    arch = architecture(model.get_base_model().config.model_type)
    config = model.peft_config["default"]
    if wrong := why_not(config):
        raise RunError(f"{folder}: a GGUF adapter holds LoRA on linear layers only: {'; '.join(wrong)}; use --to hf")
    largest = 0.0
    if config.kind != "LORA" or getattr(config, "use_dora", False) or rank:
        largest, model = _as_lora(model, finished, rank or 16)
    pairs = list(pairs_of(model))
    with new_folder(out) as place, console.status("writes the file and reads it back"):
        file = place / "adapter.gguf"
        write(file, pairs, arch, model.get_base_model().config)
        gap = check(file, pairs, arch, model.get_base_model().config)
        if gap > TOLERANCE:
            raise ProofError(f"adapter.gguf does not hold the adapter: an update is off by {gap:.3g} of its norm")
        told = {
            "adapter": str(folder),
            "to": "gguf",
            "architecture": arch,
            "largest_gap": gap,
            "conversion_error": largest,
        }
        write_json(place / "export.json", told)
    said = [f"read back by gguf.GGUFReader: {len(pairs)} updates, off by {gap:.2g} of their norm at most"]
    if largest:
        said.append(f"converted to LoRA: at most {largest:.2%} of a layer's update is lost")
    return [
        *said,
        f"llama-cli -m BASE.gguf --lora {out / 'adapter.gguf'} uses it, with BASE.gguf made of {finished.source}",
        "llama.cpp is not run here. For a whole model, its convert_hf_to_gguf.py, which no Python package has, reads "
        "the folder that --to hf writes",
    ]


def architecture(model_type: str) -> str:
    """llama.cpp's name for a model type; raises RunError for one whose layout is not known here."""
    if model_type not in ARCHITECTURES:
        raise RunError(
            f"the GGUF layout of {model_type} is not known here; there are {', '.join(sorted(ARCHITECTURES))}. "
            "llama.cpp's convert_lora_to_gguf.py may know it: it reads what --to peft writes"
        )
    return ARCHITECTURES[model_type]


def why_not(config: Any) -> list[str]:
    """What of a configuration has no place in a GGUF adapter."""
    fields = ("modules_to_save", "trainable_token_indices", "lora_bias", "target_parameters")
    return [f"it has `{field}`" for field in fields if getattr(config, field, None)]


def pairs_of(model: Any) -> Iterator[Pair]:
    """The factors of a LoRA adapter by layer."""
    for layer in model.base_model.layers:
        a = layer.adapters["default"].to(layer.adapters["default"].tensor("A").dtype)
        A, B = (a.tensor(name).float().cpu().numpy() for name in ("A", "B"))
        yield Pair(layer.path, A, B, layer.scaling["default"])


def write(file: Path, pairs: list[Pair], arch: str, config: Any) -> None:
    """Write factors as a GGUF adapter."""
    import gguf

    alphas = {round(pair.scale * len(pair.A), 9) for pair in pairs}
    alpha = alphas.pop() if len(alphas) == 1 else 0.0  # without alpha, llama.cpp scales by 1
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for pair in pairs:
        name = gguf_name(pair.module, arch, config)
        B = pair.B if alpha else pair.B * np.float32(pair.scale)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(pair.A))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(rotated(B, pair.module, arch, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(file: Path, pairs: list[Pair], arch: str, config: Any) -> float:
    """The largest relative gap between an update and what the file says of it, read as llama.cpp reads it."""
    import gguf

    reader = gguf.GGUFReader(file)
    held = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    if len(held) != 2 * len(pairs):
        raise ProofError(f"{file.name} holds {len(held)} tensors, not {2 * len(pairs)}")
    gaps = [0.0]
    for pair in pairs:
        name = gguf_name(pair.module, arch, config)
        A, B = held[f"{name}.lora_a"], held[f"{name}.lora_b"]
        found = (alpha / len(A) if alpha else 1.0) * B @ A
        wanted = rotated(pair.scale * pair.B @ pair.A, pair.module, arch, config)
        gaps.append(float(np.linalg.norm(found - wanted) / (np.linalg.norm(wanted) + 1e-12)))
    return max(gaps)


def gguf_name(module: str, arch: str, config: Any) -> str:
    """The GGUF name of a layer's weight, by the `gguf` package's own table."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config.num_hidden_layers)
    found = names.get_name(module)
    if found is None:
        raise RunError(f"llama.cpp has no name for {module} of {config.model_type}; leave it out of target_modules")
    return f"{found}.weight"


def rotated(rows: np.ndarray, module: str, arch: str, config: Any) -> np.ndarray:
    """The rows (out, ...) of a weight in the order in which llama.cpp keeps them."""
    kind = module.rpartition(".")[2]
    if kind not in ROTATED.get(arch, ()):
        return rows
    heads = config.num_attention_heads if kind == "q_proj" else config.num_key_value_heads
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _as_lora(model: Any, finished: Finished, rank: int) -> tuple[float, Any]:
    """The adapter as LoRA of a rank on a fresh base, and how much of an update that loses."""
    from tempfile import TemporaryDirectory

    widest = min(min(layer.site.matrix[-2:]) for layer in model.base_model.layers)
    with TemporaryDirectory() as folder:
        done = trimtab.save_as_lora(folder, model, min(rank, widest))
        return done.largest, trimtab.PeftModel.from_pretrained(finished.quantised_base().model, folder)

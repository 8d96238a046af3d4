"""A merged model written shard by shard from a base that stays on disk: for models larger than memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from trimtab import offload
from trimtab.lab.errors import RunError
from trimtab.lab.files import write_json
from trimtab.layer import AdapterLayer, WeightError
from trimtab.wrappers import ModulesToSaveWrapper, TrainableTokensWrapper

SHARD = 2_000_000_000
"""Bytes in one file, if no tensor is larger."""


def refuse(model: Any) -> None:
    """Raise RunError, with all reasons, where a model's adapter cannot be merged layer by layer."""
    wrong = []
    tied = {id(held) for held in _tied(model.get_base_model())}
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, AdapterLayer):
            if module.site.codec:
                wrong.append(f"{path}: the base is quantised ({module.site.codec}), and is quantised in memory")
            elif module.site.kind == "parameter":
                wrong.append(f"{path}: it adapts a parameter inside a module, whose name in the files is not known")
            elif any(module.base_layer.children()):
                wrong.append(f"{path}: {type(module.base_layer).__name__} is made of several layers")
            elif any(id(held) in tied for held in module.base_layer.parameters(recurse=False)):
                wrong.append(f"{path}: it adapts a weight that is tied to another layer's")
            for name in module.active:
                if name in module.adapters:
                    wrong += module.check_merge([name], safe=False)
        elif isinstance(module, TrainableTokensWrapper):
            wrong.append(f"{path}: it trains rows of an embedding")
    if wrong:
        raise RunError(
            "this adapter cannot be merged shard by shard: " + "; ".join(dict.fromkeys(wrong[:8])) + ". "
            "Merge it in memory (--in-memory), on a machine that holds the model."
        )


def merged_tensors(model: Any, errors: list[WeightError]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor of the merged model, one layer in memory at a time.

    Args:
        model: the base with its adapter; its weights may be on disk.
        errors: gets what storing each merged weight lost.
    """
    base = model.get_base_model()
    seen: set[int] = set()
    inside: tuple[str, ...] = ()
    for path, module in base.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, AdapterLayer):
            inside = (*inside, f"{path}.")
            yield from _merged(path, module, errors)
        elif isinstance(module, ModulesToSaveWrapper):
            inside = (*inside, f"{path}.")
            yield from ((_join(path, name), held.detach()) for name, held in module.acting().state_dict().items())
        else:
            for name, held in _own(module):
                if id(held) not in seen:
                    seen.add(id(held))
                    yield _join(path, name), offload.get(module, name).detach()


def write(model: Any, folder: Path) -> list[WeightError]:
    """Write the merged model's files; what storing the merged weights lost."""
    errors: list[WeightError] = []
    files: list[tuple[str, list[str]]] = []
    total, size = 0, 0
    held: dict[str, Tensor] = {}
    for name, tensor in merged_tensors(model, errors):
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > SHARD:
            files.append(_write_shard(folder, len(files), held))
            size, held = 0, {}
        held[name] = tensor.contiguous().clone()
        size, total = size + bytes_, total + bytes_
    files.append(_write_shard(folder, len(files), held))
    _finish(folder, files, total)
    base = model.get_base_model()
    base.config.save_pretrained(folder)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
    return errors


def _write_shard(folder: Path, number: int, held: dict[str, Tensor]) -> tuple[str, list[str]]:
    from safetensors.torch import save_file

    name = f"part-{number}.safetensors"
    save_file(held, folder / name, metadata={"format": "pt"})
    return name, list(held)


def _finish(folder: Path, files: list[tuple[str, list[str]]], total: int) -> None:
    """Give the shards the names that Transformers looks for."""
    if len(files) == 1:
        (folder / files[0][0]).rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, (name, keys) in enumerate(files, 1):
        final = f"model-{number:05}-of-{len(files):05}.safetensors"
        (folder / name).rename(folder / final)
        where |= dict.fromkeys(keys, final)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


def _merged(path: str, layer: AdapterLayer, errors: list[WeightError]) -> Iterator[tuple[str, Tensor]]:
    names = [name for name in layer.active if name in layer.adapters]
    w, b = layer.merged_weight(names)
    stored = layer.site.stored(w).to(layer.site.dtype)
    lost = (stored.to(w.dtype) - layer.site.stored(w)).abs()
    errors.append(WeightError(layer.path, float(lost.max()), float(lost.mean())))
    yield _join(path, layer.site.parameter), stored
    for name, held in _own(layer.base_layer):
        if name != layer.site.parameter:
            kept = offload.get(layer.base_layer, name).detach()
            yield _join(path, name), kept if name != layer.site.biased or b is None else b.to(held.dtype)


def _own(module: Any) -> list[tuple[str, Tensor]]:
    """A module's own parameters, and the buffers that its files hold."""
    lasting = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    return [(k, v) for k, v in {**module._parameters, **lasting}.items() if v is not None]


def _tied(base: Any) -> list[Tensor]:
    """The tensors that several modules share."""
    held = [tensor for module in base.modules() for tensor in module._parameters.values() if tensor is not None]
    counts: dict[int, int] = {}
    for tensor in held:
        counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return [tensor for tensor in held if counts[id(tensor)] > 1]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

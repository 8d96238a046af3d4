"""LoftQ (https://arxiv.org/abs/2310.08659): A and B begin as what quantising the base loses.

Q = q(W - s B A) and s B A = the r largest singular values of W - Q, in turn (algorithm 1); the base becomes Q.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..codecs.base import Codec
from ..codecs.nf4 import NF4
from ..codecs.scaled import Int8
from ..errors import AdapterError, AdapterFileError, listing
from ..files import find
from ..match import adapter_layers
from ..method import Start
from ..methods.options import Options
from ..model import PeftModel
from ..sites import Site
from .split import factors

CODECS: dict[int, Codec] = {4: NF4(double_quant=False), 8: Int8()}
"""How a weight is stored in so many bits."""


@dataclass(kw_only=True)
class LoftQConfig(Options, field="loftq_config"):
    """How the base is quantised, and how often the two steps alternate."""

    start = "loftq"

    loftq_bits: int = 4  # 4 (NF4) or 8
    loftq_iter: int = 1  # rounds

    def mistakes(self) -> list[str]:
        checks = {
            f"`loftq_bits`={self.loftq_bits} must be one of {listing(CODECS)}": self.loftq_bits in CODECS,
            f"`loftq_iter`={self.loftq_iter} must be at least 1": self.loftq_iter > 0,
        }
        return [text for text, fine in checks.items() if not fine]


class LoftQ(Start):
    """See the head of this file. Embeddings begin as usual."""

    name, changes_base = "loftq", True

    def refuse(self, site: Site, cfg: Any, option: str) -> str | None:
        if site.codec:
            return (
                f"the base is stored as {site.codec} already; begin as usual, and call replace_lora_weights_loftq then"
            )
        return None if site.kind in ("linear", "embedding") else "LoftQ quantises linear layers only"

    def __call__(self, a: Any, option: str) -> None:
        if a.site.kind == "embedding":
            return
        options = a.cfg.loftq_config
        w = a.site.weight().detach().float()
        codec, update = CODECS[options.loftq_bits], torch.zeros_like(w)
        for _ in range(options.loftq_iter):
            q = codec.decode(codec.encode(w - update), w.shape[1])
            update = begin(a, w - q)
        a.site.write(q)


def begin(a: Any, rest: Tensor) -> Tensor:
    """Set A and B to the r largest singular values of what is to be made up for, (out, in), and return s B A."""
    up, down = (t[0] for t in factors(a))
    u, s, v = torch.linalg.svd(rest, full_matrices=False)
    r = min(len(down), len(s))
    root = (s[:r] / a.scale).sqrt()
    b, rows = u[:, :r] * root, root[:, None] * v[:r]
    up[:, :r].copy_(b)
    down[:r].copy_(rows)
    return a.scale * b @ rows


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: PeftModel,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[[PeftModel, str], bool] | None = None,
) -> None:
    """Set an adapter on quantised layers to what quantising lost, by the weights in the base's safetensors files.

    Args:
        peft_model: a model whose base is quantised, with a LoRA adapter.
        model_path: a safetensors file, or the folder or hub repository that holds the base; by default the one that the
            base was loaded from.
        adapter_name: whose A and B are replaced.
        callback: called after each layer with the model and the layer's path; False takes the replacement back.

    Raises `AdapterError` or `AdapterFileError` before anything is changed.
    """
    held = [layer for layer in adapter_layers(peft_model) if adapter_name in layer.adapters]
    layers = [layer for layer in held if layer.site.codec and layer.site.kind == "linear"]
    if not layers:
        raise AdapterError(f"{adapter_name!r} stands on no quantised linear layer, so nothing was lost")
    source = model_path or peft_model.peft_config[adapter_name].base_model_name_or_path
    files = originals(source)
    prefix = f"{getattr(peft_model.get_base_model(), 'base_model_prefix', '')}."
    keys = {layer.path: [f"{p}.weight" for p in (layer.path, layer.path.removeprefix(prefix))] for layer in layers}
    if missing := [path for path, named in keys.items() if not files.keys() & set(named)]:
        raise AdapterFileError(f"{source} has no weights of {listing(missing)}")
    for layer in layers:
        a: Any = layer.adapters[adapter_name]
        before = a.A.clone(), a.B.clone()
        key = next(k for k in keys[layer.path] if k in files)
        with safe_open(files[key], framework="pt") as file:
            w = file.get_tensor(key).to(a.site.device).float()
        if (origin := getattr(a.site.layer, "origin", None)) is not None:
            w = origin.stored(w)  # which turns back what it turns
        begin(a, w - a.site.weight().float())
        if callback is not None and not callback(peft_model, layer.path):
            a.A.copy_(before[0])
            a.B.copy_(before[1])


def originals(source: str | Path | None) -> dict[str, Path]:
    """The safetensors file that holds each tensor of a base model, by the tensor's name."""
    if source is None:
        raise AdapterError("the base is not known to come from a folder or hub; pass `model_path`")
    paths = [Path(source)]
    if not paths[0].is_file():
        try:
            paths = [find(source, "model.safetensors")]
        except AdapterFileError:
            index = json.loads(find(source, "model.safetensors.index.json").read_text(encoding="utf-8"))
            paths = [find(source, name) for name in sorted(set(index["weight_map"].values()))]
    found: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found

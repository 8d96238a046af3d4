"""aLoRA (https://arxiv.org/abs/2504.12397), a variant of LoRA that acts only where it has been invoked.

y'_t = y_t + s B A x_t for the tokens t from the last invocation on, which is a given sequence of tokens, and y'_t = y_t
before it and in rows without one. Keys and values of the text before are the base's own, whose cache can be continued.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ConfigError
from ..match import adapter_layers
from ..method import Slot
from ..sites import Site
from .lora import Lora, LoraConfig

TEXT = "text_so_far"
"""The attribute of a cache that holds the tokens whose keys and values it does."""


class Alora(Lora):
    """See the head of this file."""

    depends = "where it is invoked"

    def wanted(self, cfg: LoraConfig) -> bool:
        return bool(cfg.alora_invocation_tokens)

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        if self.changes_base(cfg):
            raise ConfigError(f"`init_lora_weights`={cfg.init_lora_weights!r} changes the base, invoked or not")
        return super().slots(site, cfg)

    def direct(self, site: Site, cfg: LoraConfig) -> bool:
        return site.kind in ("linear", "embedding")

    def before(self, model: nn.Module, name: str, cfg: LoraConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where the adapter acts, (batch, tokens) of this call; and the text so far, with that of a continued cache."""
        ids = kwargs.get("input_ids")
        if ids is None or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise AdapterError(f"aLoRA {name!r} looks for its invocation in `input_ids`, and in those of decoders only")
        cache = kwargs.get("past_key_values")
        text = continued(cache, ids)
        if cache is not None:
            setattr(cache, TEXT, text)
        return {"acts": invoked(text, cfg.alora_invocation_tokens or ())[:, -ids.shape[1] :], TEXT: text}

    def after(self, model: nn.Module, name: str, cfg: LoraConfig, output: Any) -> Any:
        """Note the text in a cache that the model itself has made."""
        if (cache := getattr(output, "past_key_values", None)) is not None:
            layer = next(layer for layer in adapter_layers(model) if name in layer.adapters)
            setattr(cache, TEXT, layer.adapters[name].call[TEXT])
        return output

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        if "acts" not in a.call:
            raise AdapterError(f"{a.layer.path!r}: aLoRA {a.name!r} acts within a call of the whole model only")
        acts = a.rows(a.call["acts"]).to(y.device)
        if y.dim() == 2 and len(y) == acts.numel():
            acts = acts.reshape(-1)
        elif y.dim() == 3 and len(y) == len(acts) and y.shape[1] <= acts.shape[1]:
            acts = acts[:, -y.shape[1] :]  # of a head, the last tokens alone may be asked for
        else:
            text = f"cannot tell which of {acts.numel()} tokens features of shape {tuple(y.shape)} are"
            raise AdapterError(f"{a.layer.path!r}: aLoRA {a.name!r} {text}")
        return torch.where(acts.unsqueeze(-1), super().output(x, y, a), y)


def continued(cache: Any, ids: Tensor) -> Tensor:
    """The text so far, (batch, tokens): what a cache holds, -1 where that is not known, and what is new."""
    length = int(cache.get_seq_length()) if cache is not None else 0
    seen = getattr(cache, TEXT, ids[:, :0])[:, :length].to(ids.device)
    if len(seen) != len(ids):  # one prompt, continued in several ways
        seen = seen.repeat_interleave(len(ids) // len(seen), dim=0)
    return torch.cat([seen, ids.new_full((len(ids), length - seen.shape[1]), -1), ids], dim=1)


def invoked(text: Tensor, tokens: Sequence[int]) -> Tensor:
    """True from the start of the last occurrence of `tokens` on, for each row of the text (batch, tokens)."""
    if text.shape[1] < len(tokens):
        return torch.zeros_like(text, dtype=torch.bool)
    starts = (text.unfold(1, len(tokens), 1) == torch.tensor(tokens, device=text.device)).all(-1)
    places = torch.arange(1, text.shape[1] + 1, device=text.device)
    last = (starts * places[: starts.shape[1]]).amax(1, keepdim=True)
    return (places >= last) & (last > 0)

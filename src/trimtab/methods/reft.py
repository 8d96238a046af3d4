"""ReFT: https://arxiv.org/abs/2404.03592

LoReFT: h' = h + R^T (W h + b - R h), with W, R (r, d) and b (r,), the rows of R orthonormal: what a block returns is
set, within a subspace of r dimensions, to what W and b make of it; at the first and last tokens of a prompt, or at all
tokens. DiReFT does without difference and orthogonality: h' = h + R^T (W h + b).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import repeated
from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..method import Adapter, Method, Slot, kaiming, zeros
from ..sites import Site


@dataclass(kw_only=True)
class ReftConfig(AdapterConfig, kind="REFT"):
    """Interventions on hidden states; without `target_modules`, on what each block of the model returns."""

    positive = ("r",)

    r: int = 4  # dimensions of the subspace
    positions: str = "f4+l4"  # the first and last tokens of a prompt, "f4" or "l4" for one of both; "all": every token
    layers: list[int] | None = None  # the blocks, by index, where `target_modules` is unset; None: all
    direft: bool = False  # DiReFT instead of LoReFT
    init_weights: bool = True  # start without effect; False: W is random

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.positions != "all" and not any(self.ends()):
            wrong.append(f"`positions`={self.positions!r} must be as 'f4+l4', 'f4', 'l4', or 'all'")
        return wrong

    def ends(self) -> tuple[int, int]:
        """How many tokens at the beginning and at the end of a prompt."""
        found = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", self.positions)
        return (int(found[1] or 0), int(found[2] or 0)) if found else (0, 0)


class Reft(Method):
    """See the head of this file; here at all tokens: with V = W - R, a layer's weight M becomes M + R^T V M."""

    name, prefix, on_blocks = "REFT", "reft_", True

    def find(self, model: nn.Module, cfg: ReftConfig) -> list[str] | None:
        names = repeated(model)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):  # the prompt goes into the encoder
            names = [n for n in names if n.rpartition(".")[0] == names[0].rpartition(".")[0]]
        found = [n for n in names if cfg.layers is None or int(n.rpartition(".")[2]) in cfg.layers]
        if names and not found:
            raise ConfigError(f"`layers`={cfg.layers} are none of the model's blocks, {names[0]!r} to {names[-1]!r}")
        return found or None

    def slots(self, site: Site, cfg: ReftConfig) -> dict[str, Slot]:
        if site.kind == "conv":
            raise ConfigError("ReFT changes features that come last, and a convolution's do not")
        if cfg.r > site.out:
            raise ConfigError(f"`r`={cfg.r} is more than the {site.out} features that come out")
        start = zeros if cfg.direft and cfg.init_weights else kaiming
        return {
            "R": Slot(name="reft_R", shape=(cfg.r, site.out), init=lambda t, g: nn.init.orthogonal_(t, generator=g)),
            "W": Slot(name="reft_W", shape=(cfg.r, site.out), init=start),
            "b": Slot(name="reft_b", shape=(cfg.r,)),
        }

    def start(self, a: Adapter) -> None:
        if a.cfg.init_weights and not a.cfg.direft:
            a.W.copy_(orthonormal(a.R))

    def parts(self, a: Any) -> tuple[Tensor, Tensor]:
        """R and V, both (r, d)."""
        r = a.R if a.cfg.direft else orthonormal(a.R)
        return r, a.W if a.cfg.direft else a.W - r

    def weight(self, w: Tensor, a: Any) -> Tensor:
        r, v = self.parts(a)
        return w + r.T @ (v @ w)

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        r, v = self.parts(a)
        return r.T @ a.b if b is None else b + r.T @ (v @ b + a.b)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        r, v = self.parts(a)
        return y + F.linear(F.linear(y.to(a.dtype), v, a.b), r.T)


class ReftAtEnds(Reft):
    """The same at the first and last tokens of a prompt alone, as in the paper."""

    depends = "the place of a token"
    arguments = ("prompt_lengths",)

    def wanted(self, cfg: ReftConfig) -> bool:
        return cfg.positions != "all"

    def before(self, model: nn.Module, name: str, cfg: ReftConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where to intervene. A prompt is all that is not padding, up to the first token that has a label.

        `prompt_lengths`, how many tokens each row's prompt has, says so where a call does not show it: in a training
        whose loss is computed elsewhere, or a generation without a cache. Generated tokens are not changed.
        """
        tokens = next((t for k in ("input_ids", "inputs_embeds") if (t := kwargs.get(k)) is not None), None)
        mask, cache, labels = (kwargs.get(k) for k in ("attention_mask", "past_key_values", "labels"))
        if cache is not None and cache.get_seq_length():
            return {"where": None}
        if mask is None and tokens is not None:
            mask = torch.ones(tokens.shape[:2], device=tokens.device)
        if mask is None or mask.dim() != 2:
            return {}
        real, lengths = mask.bool(), kwargs.get("prompt_lengths")
        if lengths is None and cfg.task_type == "CAUSAL_LM" and labels is not None:
            lengths = (real & ((labels != -100).cumsum(1) == 0)).sum(1)
        return {"where": chosen(cfg, real, lengths)}

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        if y.dim() != 3:
            raise AdapterError(f"{a.layer.path!r} returns {tuple(y.shape)}, not (batch, tokens, features)")
        if "where" not in a.call:  # nothing is known of the call: no padding, and all of it a prompt
            where = chosen(a.cfg, torch.ones(y.shape[:2], dtype=torch.bool, device=y.device), None)
        elif a.call["where"] is None:
            return y
        else:
            where = a.rows(a.call["where"])
        if where.shape != y.shape[:2]:
            raise AdapterError(f"{a.layer.path!r} has {y.shape[1]} tokens, and `attention_mask` {where.shape[1]}")
        return torch.where(where.unsqueeze(-1), super().output(x, y, a), y)


def chosen(cfg: ReftConfig, real: Tensor, lengths: Tensor | None) -> Tensor:
    """Which tokens (batch, tokens) are among the first or last of a prompt; a prompt of none is the whole row."""
    (first, last), whole, place = cfg.ends(), real.sum(1), real.cumsum(1) - 1
    end = whole if lengths is None else torch.where(lengths.to(whole) > 0, lengths.to(whole), whole)
    return real & (place < end[:, None]) & ((place < first) | (place >= end[:, None] - last))


def orthonormal(rows: Tensor) -> Tensor:
    """The rows (r, d) made orthonormal, first to last: what is stored is free, what acts is not."""
    with torch.autocast(rows.device.type, enabled=False):
        m = rows.to(torch.promote_types(rows.dtype, torch.float32))
        factor = torch.linalg.cholesky(m @ m.T)
        return torch.linalg.solve_triangular(factor, m, upper=False).to(rows.dtype)

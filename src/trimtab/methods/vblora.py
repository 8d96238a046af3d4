"""VB-LoRA: https://arxiv.org/abs/2405.15179

W' = W + B A, where A (r, in) and B (out, r) are put together from pieces of length b, each a mixture of the k vectors
of a bank (h, b) whose logits are largest: sum_i softmax(logits)_i bank_i over these k. All layers share the bank. The
kernel of a convolution is flattened into `in`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..form import Form
from ..method import Adapter, Slot, normal, uniform
from ..sites import Site
from .factored import Factored
from .targets import ADALORA_TARGETS

VBLORA_TARGETS = ADALORA_TARGETS | {"roberta": ["query", "value"]}

GONE = -1e4
"""The logit of a vector that a file with the chosen ones only says nothing of."""


@dataclass(kw_only=True)
class VBLoRAConfig(AdapterConfig, kind="VBLORA"):
    """A bank of vectors that all layers share, from which each puts together its low-rank matrices."""

    positive = ("r", "num_vectors", "vector_length", "topk")
    shares = ("vblora_dropout",)

    r: int = 4  # rank
    num_vectors: int = 256  # h, vectors in the bank
    vector_length: int = 256  # b; divides the input and the output features of every adapted layer
    topk: int = 2  # k, vectors that a piece mixes
    save_only_topk_weights: bool = False  # a small file, of the vectors chosen and their weights; not to be trained on
    vblora_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or vblora_only
    init_vector_bank_bound: float = 0.02  # the bank starts uniform between minus and plus this
    init_logits_std: float = 0.1  # the logits start normal with this standard deviation
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.topk > self.num_vectors:
            wrong.append(f"`topk`={self.topk} vectors cannot be chosen from `num_vectors`={self.num_vectors}")
        return wrong


class VBLoRA(Factored):
    """See the head of this file."""

    name, prefix, dropout, defaults = "VBLORA", "vblora_", "vblora_dropout", VBLORA_TARGETS

    def slots(self, site: Site, cfg: VBLoRAConfig) -> dict[str, Slot]:
        out, columns = site.matrix
        b, h, start = cfg.vector_length, cfg.num_vectors, normal(cfg.init_logits_std)
        if out % b or columns % b:
            raise ConfigError(f"`vector_length`={b} must divide the weight's {out} rows and {columns} columns")
        bank = uniform(cfg.init_vector_bank_bound)
        return {
            "logits_A": Slot(name="vblora_logits_A", shape=(cfg.r, columns // b, h), init=start),
            "logits_B": Slot(name="vblora_logits_B", shape=(out // b, cfg.r, h), init=start),
            "bank": Slot(name="vblora_vector_bank", shape=(h, b), init=bank, shared=True),
        }

    def in_file(self, a: Adapter) -> Mapping[str, Form]:
        return dict.fromkeys(("logits_A", "logits_B"), chosen(a.cfg)) if a.cfg.save_only_topk_weights else {}

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """A (r, columns) and B (out, r)."""
        partly = a.training and a.cfg.save_only_topk_weights and not torch.compiler.is_compiling()
        if partly and bool((a.logits_A <= GONE).any()):
            raise AdapterError(
                f"{a.name!r} was loaded from a file with the chosen vectors only (`save_only_topk_weights`): it can be "
                "used and merged, but not trained"
            )
        return self.mixed(a.logits_A, a).flatten(1), self.mixed(a.logits_B, a).mT.flatten(0, 1)

    def mixed(self, logits: Tensor, a: Any) -> Tensor:
        """The pieces (.., b) that logits (.., h) choose."""
        best = logits.topk(a.cfg.topk, dim=-1)
        return (best.values.softmax(dim=-1).unsqueeze(-1) * a.bank[best.indices]).sum(dim=-2)


def chosen(cfg: VBLoRAConfig) -> Form:
    """Of logits, which vectors they choose, and the weights of these but the last, since they sum to one."""
    formats = (torch.uint8, torch.int16, torch.int32, torch.int64)
    narrow = next(d for d in formats if cfg.num_vectors <= torch.iinfo(d).max)

    def indices(logits: Tensor) -> Tensor:
        return logits.topk(cfg.topk, dim=-1).indices.to(narrow)

    def weights(logits: Tensor) -> Tensor:
        return logits.topk(cfg.topk, dim=-1).values.softmax(dim=-1)[..., :-1].contiguous()

    def whole(like: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        every = torch.cat([weights, 1 - weights.sum(dim=-1, keepdim=True)], dim=-1).to(like.dtype)
        logits = torch.full(like.shape, GONE, dtype=like.dtype, device=every.device)
        return logits.scatter(-1, indices.long(), every.log().clamp(min=GONE / 2))

    return Form({"_topk_indices": indices, "_topk_weights": weights}, whole)

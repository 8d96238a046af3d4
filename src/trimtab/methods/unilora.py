"""Uni-LoRA: https://arxiv.org/abs/2506.00799

W' = W + B A, where the entries of the A (r, in) and B (out, r) of all layers together are P theta. theta (d) is trained
and shared; P picks an entry of it for each of theirs, at random but all equally often, divided by the square root of
how often: it keeps lengths. The kernel of a convolution is flattened into `in`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Adapter, Slot, normal, uniform
from ..sites import Site
from .factored import Factored
from .targets import LORA_TARGETS


@dataclass(kw_only=True)
class UniLoraConfig(AdapterConfig, kind="UNILORA"):
    """One vector, scattered over the low-rank matrices of all layers, is all that is trained."""

    positive = ("r", "theta_d_length")
    shares = ("unilora_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 4  # rank
    proj_seed: int = 42  # seed of P
    theta_d_length: int = 256  # d, how many numbers are trained
    unilora_dropout: float = 0.0  # dropout on the adapter's input
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or unilora_only
    init_theta_d_bound: float = 0.02  # theta starts uniform between minus and plus this
    init_weights: bool = True  # False: theta starts standard normal
    save_indices: bool = False  # keep P in the file, too; it is larger than what is trained
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.proj_seed < 0:
            wrong.append(f"`proj_seed`={self.proj_seed} must not be negative")
        if self.init_theta_d_bound <= 0:
            wrong.append(f"`init_theta_d_bound`={self.init_theta_d_bound} must be above 0: at zero nothing would learn")
        return wrong


class UniLora(Factored):
    """See the head of this file."""

    name, prefix, dropout, defaults = "UNILORA", "unilora_", "unilora_dropout", LORA_TARGETS

    def prepare(self, cfg: UniLoraConfig, sites: Mapping[str, Site]) -> None:
        """Lay out the entries of all A and B one after the other, and draw P."""
        offsets, total = {}, 0
        for path, site in sites.items():
            offsets[path] = total
            total += cfg.r * sum(site.matrix)
        vars(cfg).update(offsets=offsets, total=total)
        picks(cfg.proj_seed, cfg.theta_d_length, total)

    def slots(self, site: Site, cfg: UniLoraConfig) -> dict[str, Slot]:
        out, columns = site.matrix
        start = uniform(cfg.init_theta_d_bound) if cfg.init_weights else normal()
        slots = {"theta": Slot(name="unilora_theta_d", shape=(cfg.theta_d_length,), init=start, shared=True)}
        for key, shape in (("A", (cfg.r, columns)), ("B", (out, cfg.r))):
            for kind, dtype in (("indices", torch.int64), ("scales", torch.float32)):
                slots[f"{kind}_{key}"] = Slot(
                    name=f"unilora_{kind}_{key}", shape=shape, trainable=False, dtype=dtype, kept=cfg.save_indices
                )
        return slots

    def derive(self, a: Adapter) -> None:
        """The layer's part of P, unless a file will bring it."""
        if a.indices_A.is_meta:
            return
        index, scale = picks(a.cfg.proj_seed, a.cfg.theta_d_length, a.cfg.total)
        end = a.cfg.offsets[a.layer.path]
        for key in ("A", "B"):
            start, end = end, end + a.tensor(f"indices_{key}").numel()
            a.tensor(f"indices_{key}").view(-1).copy_(index[start:end])
            a.tensor(f"scales_{key}").view(-1).copy_(scale[index[start:end]])

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        """A (r, columns) and B (out, r)."""
        scaled = (a.theta[a.indices_A] * a.scales_A, a.theta[a.indices_B] * a.scales_B)
        return scaled[0].to(a.dtype), scaled[1].to(a.dtype)


@lru_cache(maxsize=1)  # all layers of a model ask for the same
def picks(seed: int, d: int, total: int) -> tuple[Tensor, Tensor]:
    """Which of the d entries of theta stands in each of `total` places (total), and the factor of each entry (d).

    NumPy draws it, because PEFT's files without P mean what NumPy draws. Raises `ConfigError` where there is no NumPy.
    """
    try:
        from numpy.random import default_rng
    except ImportError as error:
        raise ConfigError("Uni-LoRA draws its projection with NumPy: pip install numpy") from error
    rng = default_rng(seed)
    rest = torch.from_numpy(rng.choice(d, total % d, replace=False))
    index = torch.cat([torch.arange(d, device="cpu").repeat_interleave(total // d), rest])
    rng.shuffle(index.numpy())
    return index, index.bincount(minlength=d).clamp(min=1).rsqrt()

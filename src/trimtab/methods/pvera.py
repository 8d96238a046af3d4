"""PVeRA: https://arxiv.org/abs/2512.07703

y' = y + diag(b) B z, where z (r) is normal, sampled for every position: h = diag(d) A x (2 r) holds its mean and the
logarithm of its variance. After training only the mean acts, W' = W + diag(b) B (diag(d) A)[:r]; a merge means that.
b (out) and d (2 r) are trained; A (2 r, in) and B (out, r) are random, frozen, and shared by all layers as in VeRA.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Slot
from ..sites import Site
from .targets import VERA_TARGETS
from .vera import Vera


@dataclass(kw_only=True)
class PveraConfig(AdapterConfig, kind="PVERA"):
    """VeRA that learns a distribution of its low-dimensional features."""

    positive = ("r",)
    shares = ("pvera_dropout",)

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format

    r: int = 256  # rank; higher than LoRA's, since it costs two numbers a rank
    projection_prng_key: int = 0  # seed of A and B
    save_projection: bool = True  # keep A and B in the file; False: make them anew from the seed
    pvera_dropout: float = 0.0  # dropout on the adapter's input
    d_initial: float = 0.1  # where d starts
    fan_in_fan_out: bool = False  # kept for the file format; the layout is read off the layer
    bias: str = "none"  # type: ignore[misc]  # which biases of the base are trained and saved: none, all or pvera_only
    init_weights: bool = True  # b starts at zero, without effect; False: at one, and d is normal
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only layers with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the layers
    sample_at_inference: bool = False  # sample after training, too
    generator_seed: int | None = None  # seed of the samples; None: torch's own. Gradient checkpointing needs None


class Pvera(Vera):
    """See the head of this file."""

    name, prefix, dropout, defaults = "PVERA", "pvera_", "pvera_dropout", VERA_TARGETS | {"dinov2": ["query", "value"]}
    halves = 2

    def slots(self, site: Site, cfg: PveraConfig) -> dict[str, Slot]:
        if not self.direct(site, cfg):
            kind = "grouped convolution" if site.kind == "conv" else f"{site.kind} layer"
            raise ConfigError(f"features are sampled for every position of the input, which a {kind} does not show")
        return super().slots(site, cfg)

    def latent(self, h: Tensor, a: Any) -> Tensor:
        mean, spread = h.chunk(2, dim=-1 - len(a.site.shape[2:]))
        if not (a.training or a.cfg.sample_at_inference):
            return mean
        generator = None
        if (seed := a.cfg.generator_seed) is not None:
            generators: dict[torch.device, Generator] = vars(a.cfg).setdefault("generators", {})
            generator = generators.get(h.device) or generators.setdefault(
                h.device, Generator(h.device).manual_seed(seed)
            )
        noise = torch.randn(mean.shape, generator=generator, dtype=h.dtype, device=h.device)
        return mean + (spread / 2).exp() * noise

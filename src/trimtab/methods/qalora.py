"""QA-LoRA (https://arxiv.org/abs/2309.14717), a variant of LoRA: A reads one number for each group of g inputs.

W' = W + s (in / g^2) B (A repeated g times along the inputs), with A (r, in / g). The update is constant in a group, so
that the zero points of a base quantised in groups of g can take it up. A reads the mean of a group times the number of
groups, which is what PEFT's files mean.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ConfigError
from ..method import Slot
from ..sites import Site
from .lora import Lora, LoraConfig


class QaLora(Lora):
    """See the head of this file."""

    product = ()
    transposed: ClassVar = {}
    no_start = "the A of QA-LoRA reads groups of inputs"

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.use_qalora

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        if site.kind in ("embedding", "conv"):
            raise ConfigError(f"`use_qalora` groups the inputs of linear layers; {site.kind} layers have none such")
        if cfg.qalora_group_size < 1 or site.inp % cfg.qalora_group_size:
            raise ConfigError(f"`qalora_group_size`={cfg.qalora_group_size} must divide the {site.inp} inputs")
        slots = super().slots(site, cfg)
        rows, columns = slots["A"].shape
        return slots | {"A": replace(slots["A"], shape=(rows, columns // cfg.qalora_group_size))}

    def factors(self, a: Any) -> tuple[Tensor, Tensor]:
        g = a.cfg.qalora_group_size
        return (a.site.inp / g**2) * a.A.repeat_interleave(g, dim=1), a.B

"""LLaMA-Adapter: https://arxiv.org/abs/2303.16199

In the topmost layers, the heads read a trained prompt P beside the input, by a softmax of its own:
read' = read + g softmax(q K_P^T / sqrt(width)) V_P, with K_P and V_P what the attention makes of P (n, d). The gate g
starts at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..heads import HeadsSite
from ..method import Method, Slot, normal
from ..sites import Site
from .targets import Targets

_SELF = ["self_attn"]
TARGETS: Targets = {
    "gpt2": ["attn"],
    **dict.fromkeys("llama mistral mixtral stablelm phi gemma gemma2 gemma3_text qwen2 qwen3 opt".split(), _SELF),
}


@dataclass(kw_only=True)
class AdaptionPromptConfig(AdapterConfig, kind="ADAPTION_PROMPT"):
    """LLaMA-Adapter: prompts that the attention of the topmost layers reads."""

    exclude_modules: ClassVar[Any] = None  # type: ignore[misc]  # not in this method's file format
    modules_to_save: ClassVar[Any] = None  # type: ignore[misc]  # nor this

    adapter_len: int | None = None  # tokens in each prompt; must be given
    adapter_layers: int | None = None  # how many layers have one, from the top; must be given

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str):  # the name of the attention modules, no regular expression
            self.target_modules = [self.target_modules]
        super().__post_init__()

    @property
    def is_adaption_prompt(self) -> bool:
        return True

    @property
    def topmost(self) -> int | None:
        """How many of the targets get an adapter, counted from the model's end."""
        return self.adapter_layers

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        for key in ("adapter_len", "adapter_layers"):
            if (value := getattr(self, key)) is None or value < 1:
                wrong.append(f"`{key}`={value} must be given, and be at least 1")
        if len(self.target_modules or ()) > 1:
            wrong.append(f"`target_modules`={self.target_modules} must be one name: that of the attention modules")
        return wrong

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values | {"target_modules": values["target_modules"] and values["target_modules"][0]}


class AdaptionPrompt(Method):
    """See the head of this file."""

    name, prefix, defaults, on_blocks, block = "ADAPTION_PROMPT", "adaption_", TARGETS, True, HeadsSite
    depends = HeadsSite.whole

    def prepare(self, cfg: AdaptionPromptConfig, sites: Mapping[str, Site]) -> None:
        if len(sites) < (asked := cfg.adapter_layers or 0):
            raise ConfigError(f"`adapter_layers`={asked}, and {len(sites)} modules are called {cfg.target_modules}")

    def slots(self, site: Site, cfg: AdaptionPromptConfig) -> dict[str, Slot]:
        return {
            "P": Slot(name="adaption_prompt", shape=(1, cfg.adapter_len or 0, site.inp), init=normal()),
            "g": Slot(name="adaption_gate", shape=(1,)),
        }

    def output(self, q: Tensor, read: Tensor, a: Any) -> Tensor:
        keys, values = (t.to(q.dtype).expand(len(q), -1, -1, -1) for t in a.site.keys_values(a.P))
        beside = F.scaled_dot_product_attention(q, keys, values, scale=a.site.scale, enable_gqa=True)
        return read + a.g * beside.transpose(1, 2)

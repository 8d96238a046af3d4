"""LN tuning: https://arxiv.org/abs/2312.11420

W' = V and b' = c: of chosen layers, as a rule the normalisations, weight and bias are trained themselves. V and c start
as copies of W and b, in the layout in which the layer stores them.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import AdapterConfig
from ..errors import ConfigError
from ..method import Method, Slot, constant
from ..sites import Site
from .targets import Targets

_BY_NAMES = {
    "input_layernorm post_attention_layernorm norm": "llama llama4 mistral mixtral gemma",
    "input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm norm": "gemma2 "
    "gemma3_text",
    "post_attention_layernorm": "qwen2 qwen3",
    "input_layernorm post_attention_layernorm ln_f": "bloom falcon",
    "input_layernorm post_attention_layernorm final_layer_norm": "gpt_neox",
    "input_layernorm final_layernorm": "phi",
    "layer_norm final_layer_norm": "t5 mt5",
    "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm": "bart",
    "self_attn_layer_norm final_layer_norm": "opt",
    "ln_1 ln_2 ln_f": "gpt2 gpt_bigcode gpt_neo",
    "ln_1 ln_f": "gptj",
    "LayerNorm": "bert roberta xlm-roberta electra deberta deberta-v2 layoutlm",
    "layernorm LayerNorm final_layer_norm self_attn_layer_norm": "blip-2",
    "multi_modal_projector input_layernorm post_attention_layernorm norm embed_tokens lm_head": "llava",
}
LN_TARGETS: Targets = {kind: names.split() for names, kinds in _BY_NAMES.items() for kind in kinds.split()}


@dataclass(kw_only=True)
class LNTuningConfig(AdapterConfig, kind="LN_TUNING"):
    """Training the weights and biases of normalisations, or of other layers, as an adapter."""


class LNTuning(Method):
    """See the head of this file."""

    name, prefix, defaults, vectors = "LN_TUNING", "ln_tuning_layers", LN_TARGETS, True

    def slots(self, site: Site, cfg: LNTuningConfig) -> dict[str, Slot]:
        if site.codec:
            raise ConfigError(f"a weight that is stored as {site.codec} cannot be trained itself")
        return {
            key: Slot(name="ln_tuning_layers", part=key, module=True, shape=tuple(t.shape), init=constant(t.detach()))
            for key, t in site.owned().items()
        }

    def weight(self, w: Tensor, a: Any) -> Tensor:
        return a.site.stored(a.tensor(a.site.parameter))  # turns either layout into the other

    def bias(self, b: Tensor | None, a: Any) -> Tensor | None:
        return a.tensor(a.site.biased) if a.has(a.site.biased) else b

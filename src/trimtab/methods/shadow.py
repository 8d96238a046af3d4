"""ShadowPEFT: https://arxiv.org/abs/2604.19254

A small model beside the base, of the same kind, makes of the input a first state s_0. What block l reads, h_l, is
corrected by it, and what it returns, y_l, brings the state on:

    h_l' = h_l + alpha W_up W_down (h_l - s_l),  s_(l+1) = (1 - g) s_l + g T(y_l),  g = sigmoid(G(y_l))

T and G are networks of two layers with a GELU between them. The loss gets lambda times that of s_0 in place of the
base's last hidden state.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import BlockSite, repeated
from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..method import Method, Slot, kaiming, uniform, zeros
from ..side import beside, check_checkpointing, held_by, parts, smaller, stack_of
from ..sites import Site


@dataclass(kw_only=True)
class ShadowConfig(AdapterConfig, kind="SHADOW"):
    """A small model beside a decoder, whose state goes along with it from block to block."""

    positive = ("r", "shadow_hidden_size", "shadow_num_attention_heads", "shadow_intermediate_size",
                "update_hidden_size")  # fmt: skip
    shares = ("shadow_dropout",)

    r: int = 8  # rank of W_down and W_up
    shadow_alpha: float = 0.1  # alpha
    shadow_dropout: float = 0.2  # dropout on h - s
    init_weights: bool = True  # W_up starts at zero, without effect; False: at random
    shadow_model: str = "mirror"  # what is beside the base: a smaller one of its kind
    shadow_num_hidden_layers: int | None = None  # its blocks; None or 0: one
    shadow_hidden_size: int | None = None  # its width, None: the base's; if another, a projection follows
    shadow_num_attention_heads: int | None = None  # its heads; None: as the base has
    shadow_intermediate_size: int | None = None  # width of its feed-forward networks; None: the base's
    share_embeddings: bool = True  # it reads the base's frozen embeddings, if it is as wide; False: its own
    update_hidden_size: int | None = None  # width within T and G; None: r
    auxiliary_loss_weight: float = 0.05  # lambda; 0: no such term
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only blocks with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the blocks

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.shadow_model != "mirror":
            wrong.append(
                f"`shadow_model`={self.shadow_model!r}: a model that was trained elsewhere cannot be the shadow; "
                "only 'mirror' can be chosen"
            )
        return wrong


class Shadow(Method):
    """See the head of this file."""

    name, prefix, dropout, on_blocks, block = "SHADOW", "shadow_", "shadow_dropout", True, BlockSite
    depends = "the state beside the model"

    def find(self, model: nn.Module, cfg: ShadowConfig) -> list[str] | None:
        return repeated(model) or None

    def meet(self, model: nn.Module, cfg: ShadowConfig) -> None:
        """Build the shadow, and what its state goes through to be a hidden state and a classification of the base."""
        stack, names = stack_of(model)
        base: Any = stack.config
        shadow = smaller(
            stack,
            num_hidden_layers=cfg.shadow_num_hidden_layers or 1,
            hidden_size=cfg.shadow_hidden_size,
            num_attention_heads=cfg.shadow_num_attention_heads,
            intermediate_size=cfg.shadow_intermediate_size,
        )
        width, head = shadow.config.hidden_size, getattr(model, "score", None)
        borrows = cfg.share_embeddings and width == base.hidden_size
        if borrows and hasattr(shadow, "embed_tokens"):
            shadow.embed_tokens = None
        nets = {"shadow_backbone": shadow}
        if width != base.hidden_size:
            nets["shadow_projection"] = nn.Linear(width, base.hidden_size, bias=False)
        if head is not None:
            nets["shadow_head"] = copy.deepcopy(getattr(head, "original_module", head)).requires_grad_(True)
        vars(cfg).update(nets=nets, borrows=borrows, width=base.hidden_size, blocks=len(names))

    def prepare(self, cfg: ShadowConfig, sites: Mapping[str, Site]) -> None:
        vars(cfg).update(order={path: i for i, path in enumerate(sites)}, first=next(iter(sites.values()), None))

    def slots(self, site: Site, cfg: ShadowConfig) -> dict[str, Slot]:
        facts = vars(cfg)
        d, r, inside = facts["width"], cfg.r, cfg.update_hidden_size or cfg.r
        if site.out != d:
            raise ConfigError(f"the shadow's state goes from block to block, and this module is not {d} wide")

        def slot(name: str, part: str, shape: tuple[int, ...], init: Any) -> Slot:
            name = f"shadow_{name}"
            return Slot(name=name, module=True, part=part, shape=shape, init=init, file=f"{name}.default.{part}")

        up = zeros if cfg.init_weights else kaiming
        slots = {"down": slot("down", "weight", (r, d), kaiming), "up": slot("up", "weight", (d, r), up)}
        for key, name in (("T", "update_transform"), ("G", "update_gate")):
            for i, (out, inp) in ((0, (inside, d)), (2, (d, inside))):
                slots[f"{key}{i}"] = slot(name, f"{i}.weight", (out, inp), kaiming)
                slots[f"{key}{i}_bias"] = slot(name, f"{i}.bias", (out,), uniform(inp**-0.5))
        if site is not facts["first"]:
            return slots
        for name, net in facts["nets"].items():
            net.to(site.device if site.device.type != "meta" else "cpu")
            slots |= parts(name, net, shared=True, file=f"{name}.default")
        return slots

    def before(self, model: nn.Module, name: str, cfg: ShadowConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first state, in `states`, by the block that reads it; what else comes of the call is for the loss."""
        shared, facts, config = held_by(model, name)._modules, vars(cfg), vars(cfg)["nets"]["shadow_backbone"].config
        shadow = shared["shadow_backbone"]._modules[name]
        ids, embeds, cache = (kwargs.get(k) for k in ("input_ids", "inputs_embeds", "past_key_values"))
        if facts["borrows"]:
            embeds = model.get_input_embeddings()(ids) if embeds is None else embeds  # type: ignore[operator]
            tokens = {"inputs_embeds": embeds.to(next(shadow.parameters()).dtype)}
        elif ids is None:
            raise AdapterError(f"adapter {name!r} has embeddings of its own: call the model with `input_ids`")
        else:
            tokens = {"input_ids": ids}
        own = None
        if cache is not None:
            own = beside(cache, name, facts["blocks"], config)
        elif kwargs.get("use_cache", not model.training and config.use_cache):
            from transformers.cache_utils import DynamicCache

            own = DynamicCache(config=config)
        more = {k: kwargs[k] for k in ("attention_mask", "position_ids") if kwargs.get(k) is not None}
        state = shadow(**tokens, **more, past_key_values=own, use_cache=own is not None, return_dict=True)[0]
        if "shadow_projection" in facts["nets"]:
            weight = shared["shadow_projection"]._modules[name].weight
            state = F.linear(state.to(weight.dtype), weight)
        return {"states": {0: state}, "cache": own if cache is None else None, "kwargs": kwargs}

    def input(self, x: Tensor, a: Any) -> Tensor:  # type: ignore[override]
        return x + a.cfg.shadow_alpha * F.linear(F.linear(a.drop(x - self.state(a)), a.down), a.up)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:  # type: ignore[override]
        z, s = y.to(a.dtype), self.state(a)
        check_checkpointing(s)
        t, g = (
            F.linear(F.gelu(F.linear(z, a.tensor(f"{k}0"), a.tensor(f"{k}0_bias"))), a.tensor(f"{k}2"), bias)
            for k, bias in (("T", a.T2_bias), ("G", a.G2_bias))
        )
        a.call["states"][a.cfg.order[a.layer.path] + 1] = s + g.sigmoid() * (t - s)
        return y

    def state(self, a: Any) -> Tensor:
        """The state that comes to a block."""
        i, states = a.cfg.order[a.layer.path], a.call.get("states", {})
        if i not in states:
            raise AdapterError(f"{a.layer.path!r} has no state beside it: call the model that was adapted, as a whole")
        return (states[i] if i else a.rows(states[0])).to(a.dtype)

    def after(self, model: nn.Module, name: str, cfg: ShadowConfig, output: Any) -> Any:
        """Let the model's cache hold the shadow's, and add the loss of the first state."""
        layer, facts = held_by(model, name), vars(cfg)
        call = layer.router.calls[name]
        cache = output.get("past_key_values") if isinstance(output, dict) else None
        if call["cache"] is not None and cache is not None:
            beside(cache, name, facts["blocks"], facts["nets"]["shadow_backbone"].config, call["cache"].get_seq_length())
            first, last = vars(cache)["networks"][name]
            cache.layers[first:last] = call["cache"].layers
        if cfg.auxiliary_loss_weight and isinstance(output, dict) and output.get("loss") is not None:
            term = self.loss(model, layer, name, call["states"][0], call["kwargs"])
            output["loss"] = output["loss"] + cfg.auxiliary_loss_weight * term
        return output

    def loss(self, model: Any, layer: Any, name: str, state: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The task's loss of the first state."""
        labels, config = kwargs["labels"], model.config
        more = {k: kwargs[k] for k in ("num_items_in_batch",) if kwargs.get(k) is not None}
        if "shadow_head" not in layer._modules:
            head = model.get_output_embeddings()
            logits = head(state.to(head.weight.dtype))
            return model.loss_function(logits=logits, labels=labels, vocab_size=config.vocab_size, **more)
        logits = layer._modules["shadow_head"]._modules[name](state)
        if "TokenClassification" not in type(model).__name__:
            real = kwargs["input_ids"] != config.pad_token_id if kwargs.get("input_ids") is not None else None
            last = logits.shape[1] - 1 if real is None else (real * torch.arange(real.shape[1], device=real.device)).argmax(1)
            logits = logits[torch.arange(len(logits), device=logits.device), last]
        return model.loss_function(labels=labels, pooled_logits=logits, logits=logits, config=config)

"""ShadowPEFT: https://arxiv.org/abs/2604.19254

A small model beside the base, of the same kind, makes of the input a first state s_0. What block l reads, h_l, is
corrected by it, and what it returns, y_l, brings the state on:

    h_l' = h_l + alpha W_up W_down (h_l - s_l),  s_(l+1) = (1 - g) s_l + g T(y_l),  g = sigmoid(G(y_l))

T and G are networks of two layers with a GELU between them. The loss gets lambda times that of s_0 in place of the
base's last hidden state.
"""

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
from ..side import beside, check_checkpointing, held_by, new_cache, parts, stack_of
from ..sites import Site
from .shadow_network import build, first_state, task_loss


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
        stack, names = stack_of(model)
        width = int(stack.config.hidden_size)  # type: ignore[union-attr, arg-type]
        vars(cfg).update(nets=build(model, stack, cfg), width=width, blocks=len(names))

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
        config, cache, own = vars(cfg)["nets"]["shadow_backbone"].config, kwargs.get("past_key_values"), None
        if cache is not None:
            own = beside(cache, name, vars(cfg)["blocks"], config)
        elif kwargs.get("use_cache", not model.training and config.use_cache):
            own = new_cache(config)
        state = first_state(model, held_by(model, name), name, kwargs, own)
        kept = own if cache is None else None
        return {"states": {0: state}, "graph": torch.is_grad_enabled(), "cache": kept, "kwargs": kwargs}

    def input(self, x: Tensor, a: Any) -> Tensor:
        return x + a.cfg.shadow_alpha * F.linear(F.linear(a.drop(x - self.state(a)), a.down), a.up)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        z, s = y.to(a.dtype), self.state(a)
        check_checkpointing(a.call)
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
        call, found = layer.router.calls[name], output if isinstance(output, dict) else {}
        if call["cache"] is not None and (cache := found.get("past_key_values")) is not None:
            beside(cache, name, facts["blocks"], facts["nets"]["shadow_backbone"].config, own=call["cache"])
        if cfg.auxiliary_loss_weight and found.get("loss") is not None:
            term = task_loss(model, layer, name, call["states"][0], call["kwargs"])
            output["loss"] = output["loss"] + cfg.auxiliary_loss_weight * term
        return output

"""LST, ladder side tuning: https://arxiv.org/abs/2206.06522

Beside the frozen blocks stand smaller ones, d / reduction wide. Each reads what its block of the model returns, scaled
down, and what the one below it returned, mixed by a gate; the last one's result, scaled up, is added to the model's:

    s_i = block_i(m_i D_i y_i + (1 - m_i) s_(i-1)),  m_i = sigmoid(alpha_i / T),  s_0 = D_0 x,  y_n' = y_n + U s_n

Nothing that is trained comes before a block of the model, so there is no backward pass through any.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..blocks import After, BlockSite, repeated
from ..config import AdapterConfig
from ..errors import AdapterError, ConfigError
from ..method import Method, Slot, kaiming, zeros
from ..side import beside, check_checkpointing, parts, smaller, stack_of
from ..sites import Site


@dataclass(kw_only=True)
class LSTConfig(AdapterConfig, kind="LST"):
    """A ladder of small blocks beside the model's own, which need no backward pass."""

    positive = ("reduction",)

    reduction: int = 8  # width of the model's blocks, over that of those beside them
    temperature: float = 0.1  # T
    init_weights: bool = True  # U starts at zero, without effect; False: at random
    layers_to_transform: list[int] | int | None = None  # type: ignore[misc]  # only blocks with these indices
    layers_pattern: list[str] | str | None = None  # type: ignore[misc]  # name of the list that holds the blocks

    def at(self, path: str) -> Self:
        here = copy(super().at(path))
        vars(here).update(i=vars(self)["order"][path], net=vars(self)["beside"][path])
        return here

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.temperature <= 0:
            wrong.append(f"`temperature`={self.temperature} must be above 0")
        return wrong


class LadderSite(BlockSite):
    """A block of the model that shows with what else it was called."""

    rest: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def around(self, after: After, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rest = args, kwargs
        out = super().around(after, layer, x, *args, **kwargs)
        self.rest = (), {}
        return out


class LST(Method):
    """See the head of this file."""

    name, prefix, on_blocks, block = "LST", "lst_", True, LadderSite
    depends = "the blocks beside the model"

    def find(self, model: nn.Module, cfg: LSTConfig) -> list[str] | None:
        return repeated(model) or None

    def meet(self, model: nn.Module, cfg: LSTConfig) -> None:
        """Build the blocks: their heads are as wide as the model's, so that they read the same positions and masks."""
        stack, names = stack_of(model)
        base: Any = stack.config
        width, heads = base.hidden_size, base.num_attention_heads
        if width % cfg.reduction:
            raise ConfigError(f"`reduction`={cfg.reduction} does not divide the {width} features of the model's blocks")
        inner = getattr(base, "intermediate_size", None) or getattr(base, "ffn_dim", None)
        small = smaller(
            stack,
            hidden_size=width // cfg.reduction,
            num_attention_heads=heads // cfg.reduction if heads % cfg.reduction == 0 else 1,
            intermediate_size=inner and max(1, inner // cfg.reduction),
            vocab_size=(getattr(base, "pad_token_id", None) or 0) + 1,
            word_embed_proj_dim=width // cfg.reduction if hasattr(base, "word_embed_proj_dim") else None,
        )
        prefix = repeated(small)[0].rpartition(".")[0]
        beside_it = {name: small.get_submodule(f"{prefix}.{i}") for i, name in enumerate(names)}
        vars(cfg).update(beside=beside_it, small=small.config, width=width, blocks=len(names))

    def prepare(self, cfg: LSTConfig, sites: Mapping[str, Site]) -> None:
        if stray := [path for path in sites if path not in vars(cfg)["beside"]]:
            raise ConfigError(f"{stray[0]!r} is none of the model's blocks, and only these have a block beside them")
        vars(cfg)["order"] = {path: i for i, path in enumerate(sites)}

    def slots(self, site: Site, cfg: LSTConfig) -> dict[str, Slot]:
        facts = vars(cfg)
        i, d, r = facts["i"], facts["width"], facts["small"].hidden_size
        net = facts["net"].to(site.device if site.device.type != "meta" else "cpu")
        slots = {"D": Slot(name="lst_down", shape=(r, d), init=kaiming), "alpha": Slot(name="lst_gate", shape=(1,))}
        if i == 0:
            slots["D0"] = Slot(name="lst_start", shape=(r, d), init=kaiming)
        if i == len(facts["order"]) - 1:
            slots["U"] = Slot(name="lst_up", shape=(d, r), init=zeros if cfg.init_weights else kaiming)
        return slots | parts("lst_block", net)

    def before(self, model: nn.Module, name: str, cfg: LSTConfig, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"states": {}, "graph": torch.is_grad_enabled()}

    def input(self, x: Tensor, a: Any) -> Tensor:
        return x if a.cfg.i else x.detach()  # embeddings may have a graph, as `enable_input_require_grads` makes them

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        i, states = a.cfg.i, a.call.get("states")
        if states is None or (i and i not in states):
            raise AdapterError(f"{a.layer.path!r} has no state beside it: call the model that was adapted, as a whole")
        s = states[i] if i else F.linear(x, a.D0)
        check_checkpointing(a.call)
        mix = (a.alpha / a.cfg.temperature).sigmoid()
        s = self.step(mix * F.linear(y.detach().to(a.dtype), a.D) + (1 - mix) * s, i, a)
        states[i + 1] = s
        return y + F.linear(s, a.U) if a.has("U") else y

    def step(self, s: Tensor, i: int, a: Any) -> Tensor:
        """What the block beside returns, called as the model's was, with a cache of its own."""
        args, kwargs = tree_map(self.own(s, i, a), a.site.rest)
        out = a.layer._modules["lst_block"]._modules[a.name](s, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def own(self, s: Tensor, i: int, a: Any) -> Callable[[Any], Any]:
        """What the block beside takes of an argument of the model's block: its rows, its number format, its cache."""
        router = a.layer.router

        def taken(value: Any) -> Any:
            if hasattr(value, "get_seq_length"):
                if router.index is None:
                    return beside(value, a.name, a.cfg.blocks, a.cfg.small, new=0 if i else s.shape[1], check=not i)
                if not i and int(value.get_seq_length()) > s.shape[1]:
                    raise AdapterError("`adapter_names`: a ladder by rows cannot go on from a cache; use_cache=False")
                return None
            if not isinstance(value, Tensor):
                return value
            value = value.to(s.dtype) if value.is_floating_point() else value
            each = router.index is not None and value.dim() > 1 and len(value) % len(router.rows) == 0
            return a.rows(value) if each else value

        return taken

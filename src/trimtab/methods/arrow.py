"""Arrow (https://arxiv.org/abs/2405.11157), a variant of LoRA that mixes trained LoRA adapters for each token.

y' = y + sum_e w_e s_e B_e A_e x, where w is the softmax of |v_e x| / temperature over the k largest, and v_e, the
adapter's prototype, is the first right singular vector of B_e A_e: the direction that it changes most. With GenKnowSub
(https://aclanthology.org/2025.acl-short.54/) the mean factors of general adapters are subtracted from A_e and B_e.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, listing
from ..method import Adapter, Slot, kaiming, method_of, zeros
from ..model import PeftModel
from ..sites import Site
from .lora import Lora, LoraConfig
from .options import Options

ROUTER = "arrow_router"


@dataclass(kw_only=True)
class ArrowConfig(Options, field="arrow_config"):
    """Which adapters are mixed, and how sharply."""

    top_k: int = 3  # how many adapters a token takes
    router_temperature: float = 1.0  # of the softmax over them
    use_gks: bool = False  # subtract what general adapters know
    task_adapter_names: list[str] | None = None  # the adapters to mix; set by `create_arrow_model`
    gks_adapter_names: list[str] | None = None  # the general ones; likewise
    rng_seed: int | None = None  # kept for the file format; prototypes are exact here, and not drawn

    def mistakes(self) -> list[str]:
        wrong, names = super().mistakes(), self.task_adapter_names or []
        if not 1 <= self.top_k <= max(len(names), 1):
            wrong.append(f"`top_k`={self.top_k} must be between 1 and the number of adapters, {len(names)}")
        if self.router_temperature <= 0:
            wrong.append(f"`router_temperature`={self.router_temperature} must be above 0")
        if self.use_gks and not self.gks_adapter_names:
            wrong.append("`use_gks` needs general adapters")
        return wrong


class Arrow(Lora):
    """See the head of this file. Its own A and B are there for the file format, and do nothing."""

    depends = "each token"

    def wanted(self, cfg: LoraConfig) -> bool:
        return cfg.arrow_config is not None

    def slots(self, site: Site, cfg: LoraConfig) -> dict[str, Slot]:
        if site.kind != "linear":
            raise ConfigError(f"adapters are mixed token by token, which a {site.kind} layer cannot do")
        own = {"A": ("lora_A", (cfg.r, site.inp), kaiming), "B": ("lora_B", (site.out, cfg.r), zeros)}
        slots = {
            k: Slot(name=name, shape=shape, init=init, module=True, trainable=False)
            for k, (name, shape, init) in own.items()
        }
        experts = len(cfg.arrow_config.task_adapter_names or ())
        return slots | {"prototypes": Slot(name="lora_arrow", shape=(experts, site.inp), kept=False)}

    def experts(self, a: Adapter) -> list[tuple[Adapter | None, Tensor | None, Tensor | None]]:
        """Each adapter that is mixed, with its A and B, what general adapters know subtracted; None where it is not."""
        held, arrow = a.layer.adapters, a.cfg.arrow_config
        general = [held[n] for n in arrow.gks_adapter_names or [] if arrow.use_gks and n in held]
        found: list[Any] = []
        for name in arrow.task_adapter_names or ():
            if (one := held.get(name)) is None:
                found.append((None, None, None))
                continue
            down, up = one.A, one.B
            if general:
                down = down - torch.stack([g.A for g in general]).mean(dim=0)
                up = up - torch.stack([g.B for g in general]).mean(dim=0)
            found.append((one, down, up))
        return found

    def derive(self, a: Adapter) -> None:
        """The prototypes; zero, so without a share of its own, for an adapter that is not on this layer."""
        for row, (_, down, up) in zip(a.prototypes, self.experts(a), strict=True):
            if down is not None and up is not None and not down.is_meta:
                row.copy_(torch.linalg.svd((up @ down).float(), full_matrices=False)[2][0])

    def shares(self, x: Tensor, a: Any) -> Tensor:
        """The weight of each adapter, (..., experts), for features (..., in)."""
        arrow = a.cfg.arrow_config
        scores = (x @ a.prototypes.to(x.dtype).T).abs() / arrow.router_temperature
        best = scores.topk(arrow.top_k, dim=-1)
        return torch.full_like(scores, float("-inf")).scatter(-1, best.indices, best.values).softmax(dim=-1)

    def output(self, x: Tensor, y: Tensor, a: Any) -> Tensor:
        shares = self.shares(x, a)
        for e, (one, down, up) in enumerate(self.experts(a)):
            if one is not None and down is not None and up is not None:
                update = one.drop(x) @ down.T @ up.T
                y = y + shares[..., e : e + 1] * one.scale * update
        return y


def create_arrow_model(
    base_model: nn.Module,
    task_specific_adapter_paths: Sequence[str | Path],
    arrow_config: ArrowConfig,
    general_adapter_paths: Sequence[str | Path] | None = None,
    **adapter_kwargs: Any,
) -> PeftModel:
    """A model that mixes LoRA adapters from folders or hub repositories, token by token; nothing of it is trained.

    Args:
        base_model: the model that all adapters were trained on.
        task_specific_adapter_paths: the adapters to mix; they become `task_0`, `task_1`, ...
        arrow_config: how; the adapters' names are filled in.
        general_adapter_paths: those whose knowledge is subtracted where `use_gks`; they become `gks_0`, ...
        adapter_kwargs: options of `PeftModel.from_pretrained`.

    Raises `ConfigError` when the adapters cannot be mixed.
    """
    tasks = {f"task_{i}": path for i, path in enumerate(task_specific_adapter_paths)}
    general = {f"gks_{i}": path for i, path in enumerate(general_adapter_paths or ())}
    arrow_config.task_adapter_names, arrow_config.gks_adapter_names = list(tasks), list(general)
    if wrong := [*arrow_config.mistakes(), *_obstacles(tasks, general)]:
        raise ConfigError("ArrowConfig: " + "; ".join(wrong))
    (first, where), *others = (tasks | general).items()
    model = PeftModel.from_pretrained(base_model, where, adapter_name=first, **adapter_kwargs)
    for name, path in others:
        model.load_adapter(path, name, **adapter_kwargs)
    like = model.peft_config[first]
    router = LoraConfig(
        r=like.r, lora_alpha=like.lora_alpha, target_modules=like.target_modules, task_type=like.task_type,
        arrow_config=arrow_config,
    )  # fmt: skip
    model.add_adapter(ROUTER, router)
    model.set_adapter(ROUTER)
    return model.eval()


def _obstacles(tasks: Mapping[str, Any], general: Mapping[str, Any]) -> Iterator[str]:
    if not tasks:
        yield "`task_specific_adapter_paths` is empty: there is nothing to mix"
    configs = {name: LoraConfig.from_pretrained(path) for name, path in {**tasks, **general}.items()}
    if other := [n for n, c in configs.items() if type(method_of(c)) is not Lora]:
        yield f"only plain LoRA adapters can be mixed, not {listing(other)}"
    elif general and len({c.r for c in configs.values()}) > 1:
        ranks = [c.r for c in configs.values()]
        yield f"general adapters are subtracted factor by factor, so all ranks have to be equal, not {ranks}"

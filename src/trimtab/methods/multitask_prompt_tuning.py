"""Multitask prompt tuning: https://arxiv.org/abs/2303.02861

[P * (u_k v_k); E(x)]: before the input's embeddings stands the prompt of its task k. It is a shared P, (n, D), times,
number by number, a matrix of low rank r of the task's own, of u_k (n, r) and v_k (r, D). What several source tasks
learnt can start the prompt of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ConfigError, listing
from ..files import find
from ..prompt_method import PROMPT_KEY, PromptMethod, VirtualTokens
from ..save import read
from ..state import WEIGHTS_NAME
from .prompt_tuning import PromptEmbedding, PromptTuningConfig


class MultitaskPromptTuningInit(str, Enum):
    """How the prompt starts: as a text, at random, or as source tasks left theirs."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"  # their P, and the mean of their u and of their v
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"  # their P, and u and v of one of them
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"  # their P


Start = MultitaskPromptTuningInit
ONE_TASK = (Start.AVERAGE_SOURCE_TASKS, Start.EXACT_SOURCE_TASK)
PARTS = ("prefix_task_cols", "prefix_task_rows")


@dataclass(kw_only=True)
class MultitaskPromptTuningConfig(PromptTuningConfig, kind="MULTITASK_PROMPT_TUNING"):
    """Multitask prompt tuning: a shared prompt, and for each of `num_tasks` tasks what makes its own of it."""

    positive = ("num_ranks", "num_tasks")
    starts: ClassVar[type[Enum]] = MultitaskPromptTuningInit

    prompt_tuning_init: MultitaskPromptTuningInit | str = MultitaskPromptTuningInit.RANDOM  # how the prompt starts
    prompt_tuning_init_state_dict_path: str | None = None  # the source tasks' safetensors file, or its folder
    prompt_tuning_init_task: int = 0  # for EXACT_SOURCE_TASK: which of them
    num_ranks: int = 1  # r
    num_tasks: int = 1  # how many tasks `task_ids` tells apart

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        start, path = self.prompt_tuning_init, self.prompt_tuning_init_state_dict_path
        if start in (*ONE_TASK, Start.ONLY_SOURCE_SHARED) and not path:
            wrong.append(f"`prompt_tuning_init_state_dict_path` must be given for {Start(start).value}")
        if self.prompt_tuning_init_task < 0:
            wrong.append(f"`prompt_tuning_init_task`={self.prompt_tuning_init_task} must be at least 0")
        if start in ONE_TASK and self.num_tasks > 1:
            wrong.append(f"`num_tasks`={self.num_tasks} must be 1: source tasks start the prompt of one other task")
        return wrong


class MultitaskPromptEmbedding(PromptEmbedding):
    """The shared prompt, (n * submodules, D), and what makes each task's own of it."""

    def __init__(self, config: MultitaskPromptTuningConfig, word_embeddings: nn.Module) -> None:
        super().__init__(config, word_embeddings)
        rows, dim = self.embedding.weight.shape
        self.prefix_task_cols = nn.Parameter(0.02 * torch.randn(config.num_tasks, rows, config.num_ranks))
        self.prefix_task_rows = nn.Parameter(0.02 * torch.randn(config.num_tasks, config.num_ranks, dim))
        begun = config.inference_mode or config.from_file
        if config.prompt_tuning_init in (*ONE_TASK, Start.ONLY_SOURCE_SHARED) and not begun:
            self.load_state_dict(_source(config, self.state_dict()), strict=False)

    def key(self, name: str) -> str:
        return name if name in PARTS else PROMPT_KEY

    def of_tasks(self, tasks: Tensor) -> Tensor:
        """The prompts of these tasks, (len(tasks), n * submodules, D)."""
        return self.embedding.weight * (self.prefix_task_cols[tasks] @ self.prefix_task_rows[tasks])


def _source(config: MultitaskPromptTuningConfig, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what the source tasks' file holds, that which a prompt starts from, by the name it has in memory."""
    source, task = config.prompt_tuning_init_state_dict_path or "", config.prompt_tuning_init_task
    held, _ = read(Path(source) if Path(source).is_file() else find(source, WEIGHTS_NAME))
    parts = PARTS if config.prompt_tuning_init in ONE_TASK else ()
    if missing := [k for k in (PROMPT_KEY, *parts) if k not in held]:
        raise ConfigError(f"{source} holds no {listing(missing)}: is it an adapter of multitask prompt tuning?")
    exact = config.prompt_tuning_init == Start.EXACT_SOURCE_TASK
    if exact and task >= (n := len(held[PARTS[0]])):
        raise ConfigError(f"`prompt_tuning_init_task`={task}, and {source} holds the tasks 0 to {n - 1}")
    found = {k: (held[k][task] if exact else held[k].mean(dim=0)).unsqueeze(0) for k in parts}
    found["embedding.weight"] = held[PROMPT_KEY]
    shapes = {k: (tuple(t.shape), tuple(wanted[k].shape)) for k, t in found.items()}
    if wrong := [f"{k} is {there}, not {here}" for k, (there, here) in shapes.items() if there != here]:
        raise ConfigError(f"{source} does not fit the configuration: " + "; ".join(wrong))
    return found


class MultitaskPromptTuning(PromptMethod):
    """See the head of this file."""

    name, kind, arguments = "MULTITASK_PROMPT_TUNING", "embeds", ("task_ids",)

    def encoder(self, cfg: MultitaskPromptTuningConfig, words: nn.Module) -> VirtualTokens:
        return MultitaskPromptEmbedding(cfg, words)

    def prompt(self, encoder: Any, batch_size: int, call: Mapping[str, Any]) -> Tensor:
        tasks, known = call.get("task_ids"), len(encoder.prefix_task_cols)
        if tasks is None:
            raise AdapterError("`task_ids`, one task for each row of the batch, must be in the model's call")
        tasks = torch.as_tensor(tasks, device=encoder.prefix_task_cols.device).flatten()
        if len(tasks) == 0 or int(tasks.min()) < 0 or int(tasks.max()) >= known:
            raise AdapterError(f"`task_ids`={tasks.tolist()}: the adapter knows the tasks 0 to {known - 1}")
        if batch_size % len(tasks):
            raise AdapterError(f"`task_ids` has {len(tasks)} tasks for a batch of {batch_size} rows")
        return encoder.of_tasks(tasks.repeat_interleave(batch_size // len(tasks)))  # each row's beams after one another

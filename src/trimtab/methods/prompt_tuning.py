"""Prompt tuning: https://arxiv.org/abs/2104.08691

[P; E(x)]: trained embeddings P, (n, D), stand before those of the input.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, listing
from ..prompt_method import PromptLearningConfig, PromptMethod, VirtualTokens


class PromptTuningInit(str, Enum):
    """How the prompt starts: as a text, as words drawn from the vocabulary, or at random."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass(kw_only=True)
class PromptTuningConfig(PromptLearningConfig, kind="PROMPT_TUNING"):
    """Prompt tuning: `num_virtual_tokens` trained embeddings before the input's."""

    starts: ClassVar[type[Enum]] = PromptTuningInit

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM  # how the prompt starts
    prompt_tuning_init_text: str | None = None  # for TEXT: the text, repeated or cut to the virtual tokens
    tokenizer_name_or_path: str | None = None  # for TEXT: the tokenizer, a folder or a hub id
    tokenizer_kwargs: dict[str, Any] | None = None  # for TEXT: options of the tokenizer's from_pretrained

    def mistakes(self) -> list[str]:
        wrong, starts = super().mistakes(), [s.value for s in self.starts]
        if self.prompt_tuning_init not in starts:
            wrong.append(
                f"`prompt_tuning_init`={self.prompt_tuning_init!r} is unknown; choose one of {listing(starts)}"
            )
        elif self.prompt_tuning_init == PromptTuningInit.TEXT:
            for key in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                wrong += [] if getattr(self, key) else [f"`{key}` must be given for `prompt_tuning_init`='TEXT'"]
        elif self.tokenizer_kwargs:
            wrong.append("`tokenizer_kwargs` are for `prompt_tuning_init`='TEXT' only")
        return wrong


class PromptEmbedding(VirtualTokens):
    """The prompt as a table, (n * submodules, D), started from `word_embeddings` where the configuration says so."""

    def __init__(self, config: PromptTuningConfig, word_embeddings: nn.Module) -> None:
        rows = config.num_virtual_tokens * config.num_transformer_submodules  # type: ignore[operator]
        super().__init__(rows, config.token_dim)  # type: ignore[arg-type]
        words: Any = word_embeddings
        if config.inference_mode or config.from_file:
            return
        if config.prompt_tuning_init == PromptTuningInit.TEXT:
            ids = _repeated(_tokens(config), rows)
        elif config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
            ids = torch.randint(len(words.weight), (rows,))
        else:
            return
        with torch.no_grad():
            self.embedding.weight.copy_(words(ids.to(words.weight.device)))


def _tokens(config: PromptTuningConfig) -> list[int]:
    """The ids of the text that the prompt starts from."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **(config.tokenizer_kwargs or {}))
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    if not ids:
        text = config.prompt_tuning_init_text
        raise ConfigError(f"`prompt_tuning_init_text`={text!r} has no tokens in {config.tokenizer_name_or_path!r}")
    return list(ids)


def _repeated(ids: list[int], rows: int) -> Tensor:
    return torch.tensor((ids * (rows // len(ids) + 1))[:rows])


class PromptTuning(PromptMethod):
    """See the head of this file."""

    name, kind = "PROMPT_TUNING", "embeds"

    def encoder(self, cfg: PromptTuningConfig, words: nn.Module) -> VirtualTokens:
        return PromptEmbedding(cfg, words)

"""What a prompt method is: its configuration, the module that computes the prompt, and the registry.

A method computes the prompt, as embeddings (`kind = "embeds"`: rows before the input's) or as keys and values
(`kind = "kv"`: a cache that attention finds filled). All else is done once for all methods: see `prompt`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import PeftConfig

PROMPT_KEY = "prompt_embeddings"
"""In a file: the finished prompt, all that inference needs and all that Hugging Face PEFT reads."""
ENCODER_KEY = "prompt_encoder."
"""In a file: how the tensors that make the prompt begin, without which training could not go on."""

PROMPTS: dict[str, "PromptMethod"] = {}
"""The prompt methods by `peft_type`."""


@dataclass(kw_only=True)
class PromptLearningConfig(PeftConfig):
    """What every prompt method has. All but the number of virtual tokens is read off the base model when left out."""

    num_virtual_tokens: int | None = None  # how many virtual tokens
    token_dim: int | None = None  # width of one: of the embeddings, or of all key heads together
    num_transformer_submodules: int | None = None  # 2 for an encoder-decoder language model, else 1
    num_attention_heads: int | None = None  # heads; for keys and values, key heads
    num_layers: int | None = None  # layers; of an encoder-decoder model, the decoder's
    modules_to_save: list[str] | None = None  # modules trained in full and saved beside the prompt

    @property
    def is_prompt_learning(self) -> bool:
        return True

    def mistakes(self) -> list[str]:
        n = self.num_virtual_tokens
        wrong = [] if n is None or n > 0 else [f"`num_virtual_tokens`={n} must be at least 1"]
        return super().mistakes() + wrong


class VirtualTokens(nn.Module):
    """A table of trained vectors, (rows, dim), and perhaps a network that makes the prompt of it."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)

    def network(self, x: Tensor) -> Tensor:
        """The prompt, (..., rows, D), from the vectors of the table, (..., rows, dim)."""
        return x

    def key(self, name: str) -> str:
        """In a file, the key of one of the tensors that make the prompt."""
        return ENCODER_KEY + name

    def table(self) -> list[Tensor]:
        """The tensors whose rows, one after the other, are the prompt itself; none where a network makes it."""
        return [self.embedding.weight] if len(list(self.parameters())) == 1 else []

    def forward(self, indices: Tensor | None = None) -> Tensor:
        """The whole prompt, (rows, D), or the one of these rows of the table."""
        return self.network(self.embedding.weight if indices is None else self.embedding(indices))


class PromptMethod:
    """What the author of a prompt method writes."""

    name: ClassVar[str]
    """The method's `peft_type`."""
    kind: ClassVar[str]
    """"embeds" when the prompt is embeddings, (n * submodules, D); "kv" for keys and values, (n, layers * 2 * D)."""
    arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of its own that a call of the model may have; the model itself does not see them."""
    loss: ClassVar[Callable[..., Tensor] | None] = None
    """`loss(logits, labels, cfg, call)`: its own, of logits (B, n + T, V) and labels (B, n + T), -100 at the prompt."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            PROMPTS[cls.name] = cls()

    def encoder(self, cfg: Any, words: nn.Module) -> VirtualTokens:
        """The module that computes the prompt; `words` is the base model's input embedding.

        With `cfg.inference_mode` it is a table of the finished prompt.
        """
        raise NotImplementedError

    def prompt(self, encoder: VirtualTokens, batch_size: int, call: Mapping[str, Any]) -> Tensor:
        """Of embeddings, the prompt of each row, (B, n * submodules, D); `call`: the arguments of its own."""
        return encoder().expand(batch_size, -1, -1)


def into_rows(rows: list[Tensor]) -> Callable[[Tensor], None]:
    """What puts a finished prompt into the tensors that hold its rows, one after the other."""

    def put(value: Tensor) -> None:
        with torch.no_grad():
            for held, part in zip(rows, value.split([len(t) for t in rows]), strict=True):
                held.copy_(part)

    return put

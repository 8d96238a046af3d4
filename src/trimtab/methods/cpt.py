"""Context-aware prompt tuning: https://arxiv.org/abs/2410.17222

[E(c) + d; E(x)]: before the input's embeddings stand those of worked examples c, each moved by a trained d, (n, D),
that stays small: a step is followed by a projection, |d_i| <= epsilon sqrt(D / 2048). Tokens have types, counted on
from example to example: 1 the input's format, 2 the input, 3 the output's format, 4 the label, 5 the next example's
format, and so on. Labels are not moved; they are predicted, those of the examples too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TaskType
from ..errors import AdapterError, ConfigError, listing, warn
from ..prompt_method import PromptLearningConfig, PromptMethod, VirtualTokens

PARTS = 4  # the types that an example takes
INPUT, LABEL = 2, 0  # those of its input and its label, modulo `PARTS`
WIDTH = 2048  # of embeddings whose bound is epsilon itself


@dataclass(kw_only=True)
class CPTConfig(PromptLearningConfig, kind="CPT"):
    """Context-aware prompt tuning: worked examples before the input, their embeddings trained within bounds."""

    cpt_token_ids: list[int] | None = None  # the examples' tokens; must be given
    cpt_mask: list[int] | None = None  # kept for the file format: all tokens of the examples are read
    cpt_tokens_type_mask: list[int] | None = None  # the type of each token; None: all format
    opt_weighted_loss_type: Literal["none", "decay"] = "none"  # "decay": earlier examples count less in the loss
    opt_loss_decay_factor: float = 1.0  # for "decay": how much less, from each example to the one before
    opt_projection_epsilon: float = 0.1  # how far tokens of inputs may move
    opt_projection_format_epsilon: float = 0.1  # how far tokens of formats may
    tokenizer_name_or_path: str | None = None  # kept for the file format: whose the tokens are

    def __post_init__(self) -> None:
        for key in ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask"):
            if (given := getattr(self, key)) is not None:
                setattr(self, key, [int(i) for i in given])
        if self.cpt_token_ids:
            self.cpt_mask = self.cpt_mask or [1] * len(self.cpt_token_ids)
            self.cpt_tokens_type_mask = self.cpt_tokens_type_mask or [1] * len(self.cpt_token_ids)
            self.num_virtual_tokens = self.num_virtual_tokens or len(self.cpt_token_ids)
        self.num_transformer_submodules = 1
        super().__post_init__()
        if 0 in (self.cpt_mask or ()):
            warn("`cpt_mask` has zeros, and all tokens of the examples are read all the same: leave out the others")

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        if self.task_type != TaskType.CAUSAL_LM:
            wrong.append(f"`task_type`={self.task_type!r} must be 'CAUSAL_LM': examples are read as the input is")
        if not self.cpt_token_ids:
            return [*wrong, "`cpt_token_ids` must be given: the tokens of the examples"]
        n = len(self.cpt_token_ids)
        for key in ("cpt_mask", "cpt_tokens_type_mask"):
            if (there := len(getattr(self, key))) != n:
                wrong.append(f"`{key}` has {there} numbers for {n} `cpt_token_ids`")
        if self.num_virtual_tokens != n:
            wrong.append(
                f"`num_virtual_tokens`={self.num_virtual_tokens}, but there are {n} `cpt_token_ids`; leave it out"
            )
        if self.opt_weighted_loss_type not in ("none", "decay"):
            wrong.append(
                f"`opt_weighted_loss_type`={self.opt_weighted_loss_type!r} is unknown; choose 'none' or 'decay'"
            )
        for key in ("opt_projection_epsilon", "opt_projection_format_epsilon", "opt_loss_decay_factor"):
            if getattr(self, key) < 0:
                wrong.append(f"`{key}`={getattr(self, key)} must be at least 0")
        return wrong


class CPTEmbedding(VirtualTokens):
    """The examples' embeddings, (n, D), and how far training moved them; in inference mode the sum alone."""

    def __init__(self, config: CPTConfig, word_embeddings: nn.Module) -> None:
        types = torch.tensor(config.cpt_tokens_type_mask) % PARTS
        super().__init__(len(types), config.token_dim)  # type: ignore[arg-type]
        if config.inference_mode:
            return
        words: Any = word_embeddings
        start = words(torch.tensor(config.cpt_token_ids, device=words.weight.device)).detach().float().cpu()
        del self.embedding.weight  # not trained
        self.embedding.register_buffer("weight", start)
        self.delta_embedding = nn.Embedding.from_pretrained(torch.zeros_like(start), freeze=False)
        epsilon = torch.full(types.shape, config.opt_projection_format_epsilon)
        epsilon[types == INPUT], epsilon[types == LABEL] = config.opt_projection_epsilon, 0.0
        self.register_buffer("bound", (epsilon * (start.shape[1] / WIDTH) ** 0.5).unsqueeze(1), persistent=False)

    def table(self) -> list[Tensor]:
        return [] if "delta_embedding" in self._modules else [self.embedding.weight]

    @torch.no_grad()
    def project_(self) -> None:
        """Bring each token's move back within its bound; once there, it stays to the bit."""
        delta, bound = self.delta_embedding.weight, self.get_buffer("bound")
        norm = delta.norm(dim=1, keepdim=True)
        delta.mul_(torch.where(norm > bound * (1 + 1e-6), bound / norm, 1.0))

    def forward(self, indices: Tensor | None = None) -> Tensor:
        """The whole prompt, (n, D), or these rows of it."""
        prompt = self.embedding.weight
        if "delta_embedding" in self._modules:
            self.project_()
            prompt = prompt + self.delta_embedding.weight * (self.get_buffer("bound") > 0)
        return prompt if indices is None else prompt[indices]


class CPT(PromptMethod):
    """See the head of this file."""

    name, kind, arguments = "CPT", "embeds", ("input_type_mask",)

    def encoder(self, cfg: CPTConfig, words: Any) -> VirtualTokens:
        ids, known = cfg.cpt_token_ids or [], len(words.weight)
        if wrong := sorted({i for i in ids if not 0 <= i < known}):
            raise ConfigError(f"`cpt_token_ids` holds {listing(wrong)}, and the vocabulary has {known} tokens")
        return CPTEmbedding(cfg, words)

    def loss(self, logits: Tensor, labels: Tensor, cfg: CPTConfig, call: Mapping[str, Any]) -> Tensor:
        """The mean cross-entropy of the labels' tokens; with "decay", times factor ** (labels after it in the row).

        `input_type_mask`, (B, T): types in the input, counted from 1 again, 0 for none. Without it, a token that is not
        -100 in `labels` is the last label's.
        """
        n, device = len(cfg.cpt_token_ids or ()), labels.device
        ids, examples = (torch.tensor(t, device=device) for t in (cfg.cpt_token_ids, cfg.cpt_tokens_type_mask))
        types = call.get("input_type_mask")
        types = torch.full_like(labels[:, n:], PARTS) if types is None else types.to(device)
        if types.shape != labels[:, n:].shape:
            raise AdapterError(f"`input_type_mask` is {tuple(types.shape)}, and `labels` {tuple(labels[:, n:].shape)}")
        before = -(-examples.max() // PARTS) * PARTS
        types = torch.cat([examples.expand(len(types), -1), torch.where(types > 0, types + before, 0)], dim=1)
        labels = torch.cat([ids.expand(len(labels), -1), labels[:, n:]], dim=1)
        example = torch.where(types % PARTS == LABEL, types // PARTS, 0)  # whose label a token is; 0: no one's
        factor = cfg.opt_loss_decay_factor if cfg.opt_weighted_loss_type == "decay" else 1.0
        weight = (factor ** later(example).float() * (counted := (example > 0) & (labels != -100)))[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")
        return (losses * weight).sum() / counted[:, 1:].sum()


def later(example: Tensor) -> Tensor:
    """For each token of a row, how many examples the row has after the token's, (B, tokens)."""
    there = F.one_hot(example).amax(dim=1)
    return (there.flip(1).cumsum(dim=1).flip(1) - there).gather(1, example)

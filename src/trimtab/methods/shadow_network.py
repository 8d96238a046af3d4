"""The small model of ShadowPEFT: how it is built beside a base, its first state, and the task's loss of that."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..side import smaller

if TYPE_CHECKING:
    from .shadow import ShadowConfig


def build(model: nn.Module, stack: Any, cfg: "ShadowConfig") -> dict[str, nn.Module]:
    """The shadow, and what its state goes through to be as wide as the base's, and to be classified as that is.

    It has no embeddings where it reads the base's.
    """
    shadow = smaller(
        stack,
        num_hidden_layers=cfg.shadow_num_hidden_layers or 1,
        hidden_size=cfg.shadow_hidden_size,
        num_attention_heads=cfg.shadow_num_attention_heads,
        intermediate_size=cfg.shadow_intermediate_size,
    )
    base, width, head = stack.config.hidden_size, shadow.config.hidden_size, getattr(model, "score", None)
    shadow.borrows = cfg.share_embeddings and width == base
    if shadow.borrows and hasattr(shadow, "embed_tokens"):
        shadow.embed_tokens = None
    nets = {"shadow_backbone": shadow}
    if width != base:
        nets["shadow_projection"] = nn.Linear(width, base, bias=False)
    if head is not None:
        nets["shadow_head"] = copy.deepcopy(getattr(head, "original_module", head)).requires_grad_(True)
    return nets


def network(layer: Any, key: str, name: str) -> Any:
    """One of an adapter's networks, None where it has no such one."""
    held = layer._modules.get(key)
    return None if held is None else held._modules.get(name)


def first_state(model: Any, layer: Any, name: str, kwargs: Mapping[str, Any], cache: Any) -> Tensor:
    """What the shadow makes of a call's tokens, as wide as the base's hidden states."""
    shadow = network(layer, "shadow_backbone", name)
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    tokens = {"input_ids": ids}
    if shadow.borrows:
        embeds = model.get_input_embeddings()(ids) if embeds is None else embeds
        tokens = {"inputs_embeds": embeds.to(next(shadow.parameters()).dtype)}
    elif ids is None:
        raise AdapterError(f"adapter {name!r} has embeddings of its own: call the model with `input_ids`")
    more = {k: kwargs[k] for k in ("attention_mask", "position_ids") if kwargs.get(k) is not None}
    state: Tensor = shadow(**tokens, **more, past_key_values=cache, use_cache=cache is not None, return_dict=True)[0]
    projection = network(layer, "shadow_projection", name)
    return state if projection is None else F.linear(state.to(projection.weight.dtype), projection.weight)


def task_loss(model: Any, layer: Any, name: str, state: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """The loss that the model computes of a call's labels, of the first state instead of its last hidden state."""
    labels, ids, config = kwargs["labels"], kwargs.get("input_ids"), model.config
    own = network(layer, "shadow_head", name)
    head = own or model.get_output_embeddings()
    if head is None:
        raise AdapterError(f"no head tells the loss of adapter {name!r}; `auxiliary_loss_weight`=0 does without it")
    logits = head(state.to(head.weight.dtype))
    if own is None:
        more = {k: kwargs[k] for k in ("num_items_in_batch",) if kwargs.get(k) is not None}
        found: Tensor = model.loss_function(logits=logits, labels=labels, vocab_size=config.vocab_size, **more)
        return found
    if labels.dim() < 2 or labels.shape[1] != logits.shape[1]:  # one for each row: of its last token
        last: Any = -1
        if ids is not None and config.pad_token_id is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            last = ((ids != config.pad_token_id) * places).argmax(1)
        logits = logits[torch.arange(len(logits), device=logits.device), last]
    found = model.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=config)
    return found

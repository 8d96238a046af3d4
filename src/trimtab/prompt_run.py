"""Calls of a model with a prompt: masks, labels, token types, positions, outputs that align, generation.

In shapes, B is the batch, T the tokens, n the virtual tokens, D their width.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import TaskType
from .errors import AdapterError, listing
from .prompt import fill, get_prompt, new_cache, words
from .prompt_method import PROMPTS

if TYPE_CHECKING:
    from .model import PeftModel

BY_TOKEN = (TaskType.CAUSAL_LM, TaskType.TOKEN_CLS)
"""Tasks with a label for every token."""
ALIGNED = (TaskType.TOKEN_CLS, TaskType.QUESTION_ANS, TaskType.FEATURE_EXTRACTION)
"""Tasks whose outputs lose the virtual positions, so that output i belongs to input token i."""
PER_TOKEN = {"logits", "start_logits", "end_logits", "last_hidden_state"}
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
BATCHED = ("input_ids", "inputs_embeds", "decoder_input_ids", "labels", "input_features", "decoder_inputs_embeds")


def run(model: "PeftModel", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The base model's forward with the active prompt before the input.

    Attention masks, labels (-100), token types and positions are extended as the prompt needs. Outputs of token
    classification, question answering and feature extraction lose the virtual positions again, so that they align
    with the input; those of a causal language model keep them, as in Hugging Face PEFT. A cache that is not empty holds
    the prompt already. Raises `AdapterError` for a call in which the prompt would be ignored.
    """
    return _run(model, model.base_model, args, *_apart(model, kwargs))


def _apart(model: "PeftModel", kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the base model, and those of the method's own."""
    own = PROMPTS[model.active_peft_config.kind].arguments
    return {k: v for k, v in kwargs.items() if k not in own}, {k: kwargs[k] for k in own if kwargs.get(k) is not None}


def _run(
    model: "PeftModel",
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    call: Mapping[str, Any],
) -> Any:
    base: Any = model.base_model
    cfg: Any = model.active_peft_config
    inputs = dict(inspect.signature(base.forward).bind_partial(*args).arguments) | dict(kwargs)
    both, keys = base.config.is_encoder_decoder, PROMPTS[cfg.kind].kind == "kv"
    mask = "decoder_attention_mask" if both and keys else "attention_mask"
    if isinstance(held := inputs.get(mask), Tensor) and held.ndim != 2:
        raise AdapterError(f"a prompt needs `{mask}` as (batch, tokens), not {tuple(held.shape)}; use a dynamic cache")
    if both and not keys and inputs.get("encoder_outputs") is not None:
        raise AdapterError(
            "`encoder_outputs` were computed without the prompt; give `input_ids`, or it would be ignored"
        )
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0 and (keys or not both):
        return forward(**_extended(inputs, cfg.num_virtual_tokens, {mask: 1}))
    if keys:
        return forward(**_with_keys(model, inputs, mask))
    if both:
        return forward(**_with_embeddings(model, inputs, call))
    return _one_stack(model, forward, inputs, call)


def _extended(inputs: Mapping[str, Any], n: int, fills: Mapping[str, int], embeds: bool = False) -> dict[str, Any]:
    """The inputs with n more columns before those in `fills`, and positions that begin after the prompt."""
    done = dict(inputs)
    for key, value in fills.items():
        if (held := done.get(key)) is not None:
            done[key] = torch.cat([held.new_full((held.shape[0], n), value), held], dim=1)
    if (positions := done.get("position_ids")) is not None:
        front = torch.arange(n, device=positions.device, dtype=positions.dtype).expand(*positions.shape[:-1], n)
        done["position_ids"] = torch.cat([front, positions + n], dim=-1) if embeds else positions + n
    return done


def _with_keys(model: "PeftModel", inputs: Mapping[str, Any], mask: str) -> dict[str, Any]:
    """The inputs with a cache that holds the prompt."""
    base: Any = model.base_model
    if base.training and getattr(base, "is_gradient_checkpointing", False):
        raise AdapterError(
            "gradient checkpointing drops the cache and with it the prefix; call gradient_checkpointing_disable() on "
            "the model, or use prompt tuning or P-tuning"
        )
    first = next((t for k in BATCHED if (t := inputs.get(k)) is not None), None)
    if first is None:
        raise AdapterError(f"the batch is unknown: give one of {listing(BATCHED)}")
    done = dict(inputs)
    if mask == "attention_mask" and done.get(mask) is None:
        done[mask] = torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
    cache = done.get("past_key_values")
    done["past_key_values"] = fill(model, new_cache(base) if cache is None else cache, first.shape[0])
    return _extended(done, model.active_peft_config.num_virtual_tokens, {mask: 1})  # type: ignore[attr-defined]


def _with_embeddings(model: "PeftModel", inputs: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as embeddings, (B, n + T, D), the prompt before them."""
    cfg: Any = model.active_peft_config
    done = dict(inputs)
    ids, given = done.pop("input_ids", None), done.pop("inputs_embeds", None)
    if ids is None and given is None:
        raise AdapterError("give `input_ids` or `inputs_embeds`: the prompt goes before them")
    embedded = words(model.base_model)(ids) if given is None else given
    prompt = get_prompt(model, embedded.shape[0], call)[:, : cfg.num_virtual_tokens]
    done["inputs_embeds"] = torch.cat([prompt.to(embedded), embedded], dim=1)
    fills = {"attention_mask": 1, "token_type_ids": 0} | ({"labels": -100} if cfg.task_type in BY_TOKEN else {})
    return _extended(done, cfg.num_virtual_tokens, fills, embeds=True)


def _one_stack(
    model: "PeftModel", forward: Callable[..., Any], inputs: Mapping[str, Any], call: Mapping[str, Any]
) -> Any:
    """Run a model of one stack on embeddings."""
    base: Any = model.base_model
    cfg: Any = model.active_peft_config
    done = _with_embeddings(model, inputs, call)
    if cfg.task_type in ALIGNED:
        return _aligned(base, cfg, forward, done)
    if (loss := PROMPTS[cfg.kind].loss) is not None and done.get("labels") is not None:
        asked, labels = done.pop("return_dict", None), done.pop("labels")
        out = forward(**done, return_dict=True)
        return _returned(base, asked, out, loss(out["logits"], labels, cfg, call))
    pooled = _last_token(base, done.get("attention_mask")) if cfg.task_type == TaskType.SEQ_CLS else nullcontext()
    with pooled:
        return forward(**done)


def _aligned(base: Any, cfg: Any, forward: Callable[..., Any], done: dict[str, Any]) -> Any:
    """What the model returns, the virtual positions taken out."""
    asked, loss = done.pop("return_dict", None), None
    start, end = done.pop("start_positions", None), done.pop("end_positions", None)
    out = forward(**done, return_dict=True)
    for key in PER_TOKEN & out.keys():
        out[key] = out[key][:, cfg.num_virtual_tokens :].contiguous()
    if "hidden_states" in out:
        out["hidden_states"] = tuple(h[:, cfg.num_virtual_tokens :] for h in out["hidden_states"])
    if start is not None and end is not None:
        loss = (_span_loss(out["start_logits"], start) + _span_loss(out["end_logits"], end)) / 2
    return _returned(base, asked, out, loss)


def _returned(base: Any, asked: bool | None, out: Any, loss: Tensor | None) -> Any:
    """The output, with another loss where there is one, as it was asked for: a dictionary or a tuple."""
    if loss is not None:
        out = type(out)(**dict(out) | {"loss": loss})
    wanted = getattr(base.config, "return_dict", True) if asked is None else asked
    return out if wanted else out.to_tuple()


def _span_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of positions, (B,), in logits, (B, T); positions outside the text do not count."""
    length = logits.shape[1]
    return nn.functional.cross_entropy(logits, positions.view(-1).clamp(0, length), ignore_index=length)


@contextmanager
def _last_token(base: Any, mask: Tensor | None) -> Iterator[None]:
    """Let a decoder's classifier (`score`) read the last real token of each row.

    Given embeddings instead of ids it could not tell padding and would read the last column.
    """
    if mask is None or not hasattr(base, "score"):
        yield
        return
    last = (torch.arange(mask.shape[1], device=mask.device) * mask.bool()).argmax(dim=1)

    def pick(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        return logits[torch.arange(len(last), device=logits.device), last.to(logits.device)].unsqueeze(1)

    handle = base.score.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


# generation
def generate(model: "PeftModel", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The base model's `generate` with the active prompt; it returns what it would for the same ids without a prompt.

    Raises `AdapterError` for assisted generation, which counts the cached tokens and would count the prompt's.
    """
    base: Any = model.base_model
    settings = kwargs.get("generation_config") or getattr(base, "generation_config", None)
    if used := [k for k in ASSISTED if kwargs.get(k) or getattr(settings, k, None)]:
        raise AdapterError(f"assisted generation ({listing(used)}) does not know of the prompt; leave it out")
    kwargs, call = _apart(model, kwargs)
    if PROMPTS[model.active_peft_config.kind].kind == "kv":
        kwargs["use_cache"] = True  # the prefix lives in it
    elif base.config.is_encoder_decoder:
        return base.generate(**_encoder_inputs(model, args, kwargs, call))
    with _forwarded(base, lambda forward, *a, **k: _run(model, forward, a, k, call)):
        return base.generate(*args, **kwargs)


def _encoder_inputs(
    model: "PeftModel", args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `generate` with the prompt in what the encoder reads."""
    config: Any = model.base_model.config
    inputs = dict(zip(("inputs", "generation_config"), args, strict=False)) | dict(kwargs)
    if (given := inputs.pop("inputs", None)) is not None:
        inputs["input_ids"] = given
    ids, pad = inputs.get("input_ids"), config.pad_token_id
    if ids is not None and inputs.get("attention_mask") is None and pad is not None and pad != config.eos_token_id:
        inputs["attention_mask"] = (ids != pad).long()
    return _with_embeddings(model, inputs, call)


@contextmanager
def _forwarded(base: Any, by: Callable[..., Any]) -> Iterator[None]:
    """Within it, a call of `base` is a call of `by(the original forward, ...)`."""
    own, original = vars(base).get("forward"), base.forward
    base.forward = functools.wraps(original)(functools.partial(by, original))
    try:
        yield
    finally:
        del base.forward
        if own is not None:
            base.forward = own

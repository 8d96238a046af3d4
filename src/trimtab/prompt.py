"""Prompts: n trained virtual tokens before the input, for every task, the base model left as it is.

What a method leaves open is done here once: masks, labels, token types, positions, generation, files. In shapes, B is
the batch, T the tokens, n the virtual tokens, D their width.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import TaskType
from .errors import AdapterError, AdapterFileError, ConfigError, listing
from .layer import seeded
from .prompt_method import PROMPTS, PromptMethod, into_rows
from .prompt_method import PromptLearningConfig as PromptLearningConfig
from .state import Entry, LoadResult, _copy_into, fit
from .wrappers import ModulesToSaveWrapper

if TYPE_CHECKING:
    from .model import PeftModel

PROMPT_KEY = "prompt_embeddings"
"""In a file: the finished prompt, all that inference needs and all that Hugging Face PEFT reads."""
ENCODER_KEY = "prompt_encoder."
"""In a file: how the tensors that make the prompt begin, without which training could not go on."""

BY_TOKEN = (TaskType.CAUSAL_LM, TaskType.TOKEN_CLS)
"""Tasks with a label for every token."""
ALIGNED = (TaskType.TOKEN_CLS, TaskType.QUESTION_ANS, TaskType.FEATURE_EXTRACTION)
"""Tasks whose outputs lose the virtual positions, so that output i belongs to input token i."""
PER_TOKEN = {"logits", "start_logits", "end_logits", "last_hidden_state"}
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
BATCHED = ("input_ids", "inputs_embeds", "decoder_input_ids", "labels", "input_features", "decoder_inputs_embeds")


# putting a prompt in
def attach(model: "PeftModel", name: str, cfg: Any, autocast: bool = True) -> None:
    """Give a model the prompt adapter `name`; what `cfg` leaves open is filled in.

    Raises `ConfigError`, with all that is wrong, before anything is changed: a prompt that the model or the task would
    ignore is refused here.
    """
    base, method = model.base_model, PROMPTS[cfg.kind]
    if not hasattr(base, "config") or not hasattr(base, "get_input_embeddings"):
        raise ConfigError(f"{type(cfg).__name__} needs a Transformers model; {type(base).__name__} is none")
    wrong = _obstacles(base, cfg, method)
    facts = {} if wrong else _facts(base, cfg, method)
    for key in ("token_dim", "num_layers", "num_attention_heads") if method.kind == "kv" else ("token_dim",):
        if facts and getattr(cfg, key) not in (None, facts[key]):
            wrong.append(f"`{key}`={getattr(cfg, key)}, but it is {facts[key]} in {type(base).__name__}; leave it out")
    if wrong:
        raise ConfigError(f"{type(cfg).__name__}: " + "; ".join(wrong))
    for key, value in facts.items():
        if getattr(cfg, key) is None:
            setattr(cfg, key, value)
    words = _words(base)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seeded(ENCODER_KEY, name).initial_seed())
        encoder = method.encoder(cfg, words)
    device = torch.device("cpu") if words.weight.is_meta else words.weight.device
    if "prompt_encoder" not in model._modules:
        model.prompt_encoder = nn.ModuleDict()
    model.prompt_encoder[name] = encoder.to(device, torch.float32 if autocast else words.weight.dtype)


def _obstacles(base: Any, cfg: Any, method: PromptMethod) -> list[str]:
    """What keeps the prompt from having its effect in this model for this task."""
    wrong, kind = [], type(base).__name__
    if cfg.task_type is None:
        wrong.append("`task_type` must be given: it decides where labels and outputs begin")
    if cfg.num_virtual_tokens is None:
        wrong.append("`num_virtual_tokens` must be given")
    lm = (None, TaskType.SEQ_2_SEQ_LM, TaskType.FEATURE_EXTRACTION)
    if base.config.is_encoder_decoder and cfg.task_type not in lm:
        wrong.append(f"{kind} reads the input itself for {cfg.task_type!s} and cannot take a prompt; use LoRA")
    if not _takes(base, argument := "past_key_values" if method.kind == "kv" else "inputs_embeds"):
        other = "prompt tuning or P-tuning" if method.kind == "kv" else "LoRA"
        wrong.append(f"{kind} takes no `{argument}`, so the prompt would have no effect; use {other}")
    elif method.kind == "kv":
        wrong += _cache_obstacles(base)
    return wrong


def _takes(base: Any, argument: str) -> bool:
    """Whether a model hands this argument to its transformer, which knows it by name."""
    core = getattr(base, getattr(base, "base_model_prefix", ""), base)
    parameters = inspect.signature(base.forward).parameters
    given = argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return given and argument in inspect.signature(core.forward).parameters


def _cache_obstacles(base: Any) -> list[str]:
    held = {type(layer).__name__ for layer in _new_cache(base, plain=True).layers}
    if odd := held - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
        return [f"{type(base).__name__} keeps more than keys and values ({listing(sorted(odd))}); use prompt tuning"]
    if getattr(base.config.get_text_config(decoder=True), "kv_lora_rank", None):
        return [f"{type(base).__name__} keeps compressed keys, which a prefix does not know; use prompt tuning"]
    return []


def _facts(base: Any, cfg: Any, method: PromptMethod) -> dict[str, int]:
    """The fields of the configuration that the base model decides."""
    config = base.config if base.config.is_encoder_decoder else base.config.get_text_config()
    heads = _first(config, "decoder_attention_heads", "num_attention_heads")
    facts = {
        "token_dim": _words(base).weight.shape[-1],
        "num_layers": _first(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_transformer_submodules": 2 if cfg.task_type == TaskType.SEQ_2_SEQ_LM else 1,
    }
    if method.kind == "kv":
        shared = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
        keys = 1 if shared else _first(config, "num_key_value_heads") or heads
        width = _first(config, "head_dim", "d_kv") or config.hidden_size // heads
        facts |= {"num_attention_heads": keys, "token_dim": keys * width}
    return facts


def _first(config: Any, *names: str) -> int:
    """The first of these attributes that is set, or 0."""
    return next((v for n in names if isinstance(v := getattr(config, n, None), int) and v), 0)


def _words(base: Any) -> Any:
    """The embedding that the input ids go through, of the encoder where there is one."""
    core = base.get_encoder() if base.config.is_encoder_decoder else base
    return core.get_input_embeddings()


# the prompt
def get_prompt(model: "PeftModel", batch_size: int) -> Any:
    """The active prompt for a batch: (B, n * submodules, D), or a cache with keys and values, (B, heads, n, width)."""
    if PROMPTS[model.active_peft_config.kind].kind == "kv":
        return _fill(model, _new_cache(model.base_model), batch_size)
    return _encoded(model).expand(batch_size, -1, -1)


def _encoded(model: "PeftModel") -> Tensor:
    """The active prompt in the number format of the base's embeddings."""
    prompt = model.prompt_encoder[model.active_adapters[0]]()
    return prompt.to(_words(model.base_model).weight.dtype)


def _new_cache(base: Any, plain: bool = False) -> Any:
    """An empty cache as the model wants it; `plain`: without the part for cross-attention."""
    from transformers import DynamicCache, EncoderDecoderCache

    if not base.config.is_encoder_decoder:
        return DynamicCache(config=base.config)
    cache = DynamicCache(config=base.get_decoder().config)
    return cache if plain else EncoderDecoderCache(cache, DynamicCache())


def _fill(model: "PeftModel", cache: Any, batch_size: int) -> Any:
    """Put the active prompt, (n, layers * 2 * D), into an empty cache.

    It holds key and value of layer 0, of layer 1, and so on. With two submodules layer i reads pair 2i (modulo the
    layers), as the file format has it: Hugging Face PEFT gives every second pair to cross-attention and drops it.
    """
    cfg: Any = model.active_peft_config
    heads = _encoded(model).view(cfg.num_virtual_tokens, cfg.num_layers * 2, cfg.num_attention_heads, -1)
    pairs = heads.permute(1, 2, 0, 3).unsqueeze(1).expand(-1, batch_size, -1, -1, -1)
    own = getattr(cache, "self_attention_cache", cache)
    for layer in range(cfg.num_layers):
        pair = layer * cfg.num_transformer_submodules % cfg.num_layers
        own.update(pairs[2 * pair], pairs[2 * pair + 1], layer)
    return cache


# forward
def run(model: "PeftModel", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The base model's forward with the active prompt before the input.

    Attention masks, labels (-100), token types and positions are extended as the prompt needs. Outputs of token
    classification, question answering and feature extraction lose the virtual positions again, so that they align
    with the input; those of a causal language model keep them, as in Hugging Face PEFT. A cache that is not empty holds
    the prompt already. Raises `AdapterError` for a call in which the prompt would be ignored.
    """
    return _run(model, model.base_model, args, kwargs)


def _run(model: "PeftModel", forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    base: Any = model.base_model
    cfg: Any = model.active_peft_config
    inputs = dict(inspect.signature(base.forward).bind_partial(*args).arguments) | kwargs
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
        return forward(**_with_embeddings(model, inputs))
    return _aligned(model, forward, inputs)


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
    done["past_key_values"] = _fill(model, _new_cache(base) if cache is None else cache, first.shape[0])
    return _extended(done, model.active_peft_config.num_virtual_tokens, {mask: 1})  # type: ignore[attr-defined]


def _with_embeddings(model: "PeftModel", inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as embeddings, (B, n + T, D), the prompt before them."""
    cfg: Any = model.active_peft_config
    done = dict(inputs)
    ids, given = done.pop("input_ids", None), done.pop("inputs_embeds", None)
    if ids is None and given is None:
        raise AdapterError("give `input_ids` or `inputs_embeds`: the prompt goes before them")
    embedded = _words(model.base_model)(ids) if given is None else given
    prompt = get_prompt(model, embedded.shape[0])[:, : cfg.num_virtual_tokens]
    done["inputs_embeds"] = torch.cat([prompt.to(embedded), embedded], dim=1)
    fills = {"attention_mask": 1, "token_type_ids": 0} | ({"labels": -100} if cfg.task_type in BY_TOKEN else {})
    return _extended(done, cfg.num_virtual_tokens, fills, embeds=True)


def _aligned(model: "PeftModel", forward: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Run a model of one stack on embeddings and take the virtual positions out of what it returns."""
    base: Any = model.base_model
    cfg: Any = model.active_peft_config
    done = _with_embeddings(model, inputs)
    if cfg.task_type not in ALIGNED:
        pooled = _last_token(base, done.get("attention_mask")) if cfg.task_type == TaskType.SEQ_CLS else nullcontext()
        with pooled:
            return forward(**done)
    asked = done.pop("return_dict", None)
    start, end = done.pop("start_positions", None), done.pop("end_positions", None)
    out = forward(**done, return_dict=True)
    for key in PER_TOKEN & out.keys():
        out[key] = out[key][:, cfg.num_virtual_tokens :].contiguous()
    if "hidden_states" in out:
        out["hidden_states"] = tuple(h[:, cfg.num_virtual_tokens :] for h in out["hidden_states"])
    if start is not None and end is not None:
        loss = (_span_loss(out["start_logits"], start) + _span_loss(out["end_logits"], end)) / 2
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
    if PROMPTS[model.active_peft_config.kind].kind == "kv":
        kwargs = kwargs | {"use_cache": True}  # the prefix lives in it
    elif base.config.is_encoder_decoder:
        return base.generate(**_encoder_inputs(model, args, kwargs))
    with _forwarded(base, lambda forward, *a, **k: _run(model, forward, a, k)):
        return base.generate(*args, **kwargs)


def _encoder_inputs(model: "PeftModel", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` with the prompt in what the encoder reads."""
    config: Any = model.base_model.config
    inputs = dict(zip(("inputs", "generation_config"), args, strict=False)) | dict(kwargs)
    if (given := inputs.pop("inputs", None)) is not None:
        inputs["input_ids"] = given
    ids, pad = inputs.get("input_ids"), config.pad_token_id
    if ids is not None and inputs.get("attention_mask") is None and pad is not None and pad != config.eos_token_id:
        inputs["attention_mask"] = (ids != pad).long()
    return _with_embeddings(model, inputs)


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


# files
def _entries(model: "PeftModel", name: str) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """By file key, the tensors that make the prompt, and those of the modules trained in full."""
    encoder = model.prompt_encoder[name]
    own = {
        f"{ENCODER_KEY}{key}": Entry(f"prompt_encoder.{name}.{key}", t, _copy_into(t))
        for key, t in encoder.state_dict(keep_vars=True).items()
    }
    saved = {}
    for path, module in model.base_model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            for key, t in module.modules_to_save[name].state_dict(keep_vars=True).items():
                held = f"base_model.{path}.modules_to_save.{name}.{key}"
                saved[f"base_model.{path}.{key}"] = Entry(held, t, _copy_into(t))
    if rows := encoder.table():
        own = {PROMPT_KEY: Entry(PROMPT_KEY, torch.cat(rows) if len(rows) > 1 else rows[0], into_rows(rows))}
    return own, saved


@torch.no_grad()
def state(model: "PeftModel", name: str) -> dict[str, Tensor]:
    """The tensors of adapter `name` by file key: the finished prompt, what made it, and the modules trained in full."""
    encoder = model.prompt_encoder[name]
    training = encoder.training
    prompt = encoder.eval()()
    encoder.train(training)
    own, saved = _entries(model, name)
    return {key: e.tensor.detach() for key, e in (own | saved).items()} | {PROMPT_KEY: prompt.detach()}


def load(model: "PeftModel", name: str, tensors: Mapping[str, Tensor], strict: bool = True) -> LoadResult:
    """Fill adapter `name` from tensors by file key; returns the keys that were missing and those left over.

    A table takes the finished prompt; an encoder (in training) takes its own tensors, so that training goes on exactly.
    Raises `AdapterFileError` as `state.load_state` does, and when an encoder is to be trained of which the file holds
    only the result, as every file of Hugging Face PEFT does.
    """
    own, saved = _entries(model, name)
    if PROMPT_KEY not in own and PROMPT_KEY in tensors and not any(k in own for k in tensors):
        raise AdapterFileError(
            f"the file holds the finished prompt ({PROMPT_KEY!r}) but not the network that made it, so its training "
            "cannot go on; load it with is_trainable=False"
        )
    spare = {k for k in tensors if (k.startswith(ENCODER_KEY) if PROMPT_KEY in own else k == PROMPT_KEY)}
    return fit(own | saved, {}, {k: t for k, t in tensors.items() if k not in spare}, strict)

"""Prompts: n trained virtual tokens before the input, for every task, the base model left as it is.

What a method leaves open is done once: here, what the base model decides of a prompt, and the prompt itself; masks,
labels, positions and generation in `prompt_run`; files in `prompt_state`. In shapes, B is the batch, n the virtual
tokens, D their width.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .config import TaskType
from .errors import ConfigError, listing
from .layer import seeded
from .prompt_method import ENCODER_KEY, PROMPTS, PromptMethod
from .prompt_method import PromptLearningConfig as PromptLearningConfig

if TYPE_CHECKING:
    from .model import PeftModel


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
    embedding = words(base)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seeded(ENCODER_KEY, name).initial_seed())
        encoder = method.encoder(cfg, embedding)
    device = torch.device("cpu") if embedding.weight.is_meta else embedding.weight.device
    if "prompt_encoder" not in model._modules:
        model.prompt_encoder = nn.ModuleDict()
    model.prompt_encoder[name] = encoder.to(device, torch.float32 if autocast else embedding.weight.dtype)


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
    held = {type(layer).__name__ for layer in new_cache(base, plain=True).layers}
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
        "token_dim": words(base).weight.shape[-1],
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


def words(base: Any) -> Any:
    """The embedding that the input ids go through, of the encoder where there is one."""
    core = base.get_encoder() if base.config.is_encoder_decoder else base
    return core.get_input_embeddings()


# the prompt
def get_prompt(model: "PeftModel", batch_size: int, call: Mapping[str, Any] | None = None) -> Any:
    """The active prompt for a batch: (B, n * submodules, D), or a cache with keys and values, (B, heads, n, width).

    `call`: the arguments of the method's own. It is in the number format of the base's embeddings.
    """
    method = PROMPTS[model.active_peft_config.kind]
    if method.kind == "kv":
        return fill(model, new_cache(model.base_model), batch_size)
    prompt = method.prompt(model.prompt_encoder[model.active_adapters[0]], batch_size, call or {})
    return prompt.to(words(model.base_model).weight.dtype)


def new_cache(base: Any, plain: bool = False) -> Any:
    """An empty cache as the model wants it; `plain`: without the part for cross-attention."""
    from transformers import DynamicCache, EncoderDecoderCache

    if not base.config.is_encoder_decoder:
        return DynamicCache(config=base.config)
    cache = DynamicCache(config=base.get_decoder().config)
    return cache if plain else EncoderDecoderCache(cache, DynamicCache())


def fill(model: "PeftModel", cache: Any, batch_size: int) -> Any:
    """Put the active prompt, (n, layers * 2 * D), into an empty cache.

    It holds key and value of layer 0, of layer 1, and so on. With two submodules layer i reads pair 2i (modulo the
    layers), as the file format has it: Hugging Face PEFT gives every second pair to cross-attention and drops it.
    """
    cfg: Any = model.active_peft_config
    prompt = model.prompt_encoder[model.active_adapters[0]]().to(words(model.base_model).weight.dtype)
    heads = prompt.view(cfg.num_virtual_tokens, cfg.num_layers * 2, cfg.num_attention_heads, -1)
    pairs = heads.permute(1, 2, 0, 3).unsqueeze(1).expand(-1, batch_size, -1, -1, -1)
    own = getattr(cache, "self_attention_cache", cache)
    for layer in range(cfg.num_layers):
        pair = layer * cfg.num_transformer_submodules % cfg.num_layers
        own.update(pairs[2 * pair], pairs[2 * pair + 1], layer)
    return cache

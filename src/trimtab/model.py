"""`PeftModel`: a base model with adapters, as one model: forward, generate, switch, save, load.

Weight adapters live in a `Tuner` (`base_model`); prompt adapters leave the base model as it is and act around it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import nn

from . import inject, prompt, prompt_run
from .combine import shortest_targets
from .config import AdapterConfig, PeftConfig, TaskType
from .errors import AdapterError, listing
from .fingerprint import Fingerprint, fingerprint
from .folders import TASKS, AdapterFolders, remembered
from .method import method_of
from .resize import resize_token_embeddings
from .tuner import Tuner

ON_CREATE: list[Callable[[], None]] = []
"""What to call when a model is made; `compat` makes it known to libraries that look for `peft`."""


class PeftModel(AdapterFolders, nn.Module):
    """A base model with adapters. Attributes that it lacks are looked up in the base model.

    Args:
        model: the base model; it is changed in place (wrapped layers, frozen parameters).
        peft_config: what to put in.
        adapter_name: its name.
        autocast_adapter_dtype: keep adapters in float32 where the base is in half precision.
        low_cpu_mem_usage: leave the adapter's tensors on the meta device until a file fills them.

    Raises `ConfigError`, `TargetError` or `AdapterError` before anything is changed.
    """

    task: ClassVar[TaskType | None] = None
    heads: ClassVar[tuple[str, ...]] = ()
    mixed: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.task is not None:
            TASKS[cls.task.value] = cls

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for hook in ON_CREATE:
            hook()
        self.fingerprint: Fingerprint = fingerprint(model)
        checkpointed = getattr(model, "is_gradient_checkpointing", False)
        self.prompts_enabled = True
        self.vocabulary_resized = False
        self._describe(model, peft_config)
        self.base_model: Any
        if peft_config.is_prompt_learning:
            self.base_model = model
            self._configs: dict[str, Any] = {}
            self._active: list[str] = []
            self._add_prompt(adapter_name, peft_config, autocast_adapter_dtype)
            self.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
        else:
            self.base_model = Tuner(model, {})
            self._add_weights(adapter_name, cast(AdapterConfig, peft_config), low_cpu_mem_usage, autocast_adapter_dtype)
            self.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
        if checkpointed:
            self.prepare_model_for_gradient_checkpointing(model)

    def _describe(self, model: nn.Module, cfg: PeftConfig) -> None:
        """Fill in what a configuration says of its base model and of the task's head."""
        config: Any = getattr(model, "config", None)
        if cfg.base_model_name_or_path is None:
            name = getattr(config, "_name_or_path", None) or model.__dict__.get("name_or_path")
            cfg.base_model_name_or_path = name or None
        if cfg.task_type is None and cfg.auto_mapping is None:
            cfg.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        if self.heads:
            names = [*(cfg.modules_to_save or []), *self.heads]  # type: ignore[attr-defined]
            cfg.modules_to_save = list(dict.fromkeys(names))  # type: ignore[attr-defined]

    def _add_weights(self, name: str, cfg: AdapterConfig, empty: bool, autocast: bool) -> None:
        """Put a weight adapter in; the adapters that it works with are loaded first, and it stands on their layers."""
        needed = method_of(cfg).companions(cfg)
        undo = remembered(self.base_model.model) if not self.peft_config else lambda: None
        try:
            for other, source in needed.items():
                if other not in self.peft_config:
                    self.base_model.add(other, PeftConfig.from_pretrained(source), True, autocast)
                    self._load(source, other, True)
            if needed:
                layers = [layer for layer in self.base_model.layers if needed.keys() & layer.adapters.keys()]
                vars(cfg)["target_modules"] = shortest_targets(self.base_model.model, layers)
            self.base_model.add(name, cfg, empty, autocast)
        except BaseException:
            undo()
            raise

    def _add_prompt(self, name: str, cfg: PeftConfig, autocast: bool = True) -> None:
        if name in self._configs:
            raise AdapterError(f"the model already has an adapter {name!r}; choose another name or delete it first")
        heads = inject.plan_modules_to_save(self.base_model, cast(AdapterConfig, cfg))
        self._configs[name] = cfg
        try:
            prompt.attach(self, name, cfg, autocast)
        except BaseException:
            del self._configs[name]
            raise
        if len(self._configs) == 1:
            self.base_model.requires_grad_(False)
        router = inject.router_of(self.base_model)
        inject.put_modules_to_save(heads, name, router)

    # what there is
    @property
    def peft_config(self) -> dict[str, Any]:
        """The configurations by adapter name."""
        return self.base_model.peft_config if isinstance(self.base_model, Tuner) else self._configs

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act."""
        return self.base_model.active_adapters if isinstance(self.base_model, Tuner) else list(self._active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The adapter that acts, or the list of them when there are several."""
        active = self.active_adapters
        return active[0] if len(active) == 1 else active

    @property
    def active_peft_config(self) -> PeftConfig:
        """The configuration of the (first) active adapter."""
        return self.peft_config[self.active_adapters[0]]

    @property
    def peft_type(self) -> Any:
        """The method of the active adapter."""
        return self.active_peft_config.peft_type

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the adapters are prompts."""
        return not isinstance(self.base_model, Tuner)

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether any adapter acts at the moment."""
        return bool(self.active_adapters) and (
            self.prompts_enabled if self.is_prompt_learning else self._layers_enabled()
        )

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules trained in full, over all adapters."""
        return {m for c in self.peft_config.values() for m in getattr(c, "modules_to_save", None) or []} or None

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        """The number format of the base model."""
        return getattr(self.get_base_model(), "dtype", None)

    def _layers_enabled(self) -> bool:
        return any(s.enabled for s in inject.switches(self))

    def get_base_model(self) -> nn.Module:
        """The base model itself (with the adapters' wrappers in it)."""
        return self.base_model.model if isinstance(self.base_model, Tuner) else self.base_model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable and of all parameters; quantised and sharded ones count as what they stand for."""
        from .status import count

        return count(self)

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trainable and of all parameters, and their ratio in percent."""
        some, every = self.get_nb_trainable_parameters()
        print(  # noqa: T201
            f"trainable params: {some:,d} || all params: {every:,d} || trainable%: {100 * some / every:.4f}"
        )

    # forward
    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's forward with the active adapters.

        `adapter_names`: one name a row of the batch, "__base__" for none; in inference and in training.
        """
        with self.routed(adapter_names):
            if self.is_prompt_learning and self.prompts_enabled:
                return prompt_run.run(self, args, kwargs)
            output = self.get_base_model()(*args, **kwargs)
            if adapter_names is not None:
                inject.router_of(self).remember(output)
            return output

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's `generate` with the active adapters, or one a row (`adapter_names`)."""
        with self.routed(adapter_names):
            if self.is_prompt_learning and self.prompts_enabled:
                return prompt_run.generate(self, args, kwargs)
            base: Any = self.get_base_model()
            with self._given(kwargs):
                return base.generate(*args, **kwargs)

    @contextmanager
    def _given(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """Within it, the methods' own arguments reach every step of a generation, which would not take them itself."""
        weights = [] if self.is_prompt_learning else self.peft_config.values()
        own = {a for cfg in weights for a in method_of(cfg).arguments}
        router = inject.router_of(self)
        before, router.given = router.given, {k: kwargs.pop(k) for k in own & kwargs.keys()}
        try:
            yield
        finally:
            router.given = before

    @contextmanager
    def routed(self, names: Sequence[str] | None) -> Iterator[None]:
        """Within it, row i of a batch takes adapter `names[i]`. Raises `AdapterError` for a name that is none."""
        if names is None:
            yield
            return
        if self.is_prompt_learning:
            raise AdapterError("`adapter_names` needs weight adapters; prompts act on the whole batch")
        if unknown := set(names) - self.peft_config.keys() - {"__base__"}:
            raise AdapterError(
                f"`adapter_names`: no adapter is called {listing(sorted(unknown))}; "
                f"there are {listing(self.peft_config)}"
            )
        if merged := self.base_model.merged_adapters:
            raise AdapterError(f"`adapter_names` cannot be used while {listing(merged)} is merged; unmerge first")
        router = inject.router_of(self)
        before, router.rows = router.rows, tuple(names)
        try:
            yield
        finally:
            router.rows = before

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
        """Resize the base's embeddings and what stands on them; see `trimtab.resize`."""
        return resize_token_embeddings(self, new_num_tokens, **kwargs)

    # switch
    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Let this adapter act, or these in this order, and let exactly it or these be trained."""
        if isinstance(self.base_model, Tuner):
            self.base_model.set_adapter(adapter_name, inference_mode)
            return
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1 or names[0] not in self._configs:
            raise AdapterError(f"one prompt adapter of {listing(self._configs)} can be active, not {listing(names)}")
        self._active = names
        for name, encoder in self.prompt_encoder.items():
            encoder.requires_grad_(name in names and not inference_mode)
        for head in inject.switches(self.base_model):
            head.activate(names, trainable=not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Switch the gradients of these adapters on or off, whichever are active."""
        if isinstance(self.base_model, Tuner):
            self.base_model.set_requires_grad(adapter_names, requires_grad)
            return
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.prompt_encoder[name].requires_grad_(requires_grad)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within it, the model computes exactly what the base model computes."""
        prompts, layers = self.prompts_enabled, [layer for layer in inject.switches(self) if layer.enabled]
        try:
            self.prompts_enabled = False
            for layer in layers:
                layer.enable(False)
            yield
        finally:  # only what was on: this may stand inside another such context
            self.prompts_enabled = prompts
            for layer in layers:
                layer.enable(True)

    # adapters come and go
    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Put another adapter in; `set_adapter` makes it act. Raises before anything is changed."""
        if peft_config.is_prompt_learning != self.is_prompt_learning:
            raise AdapterError("prompt adapters and weight adapters cannot be put into one model")
        if not (self.mixed or self.is_prompt_learning or self._may_stand_beside(peft_config)):
            raise AdapterError(
                f"the model has {self.active_peft_config.kind} adapters; for {peft_config.kind} beside them "
                "make it with get_peft_model(..., mixed=True)"
            )
        self._describe(self.get_base_model(), peft_config)
        if self.is_prompt_learning:
            self._add_prompt(adapter_name, peft_config, autocast_adapter_dtype)
            self.set_adapter(self._active[0])
        else:
            self._add_weights(adapter_name, cast(AdapterConfig, peft_config), low_cpu_mem_usage, autocast_adapter_dtype)

    def _may_stand_beside(self, cfg: PeftConfig) -> bool:
        """Whether an adapter is of the method of those there are, or works with some of them."""
        return cfg.kind == self.active_peft_config.kind or bool(method_of(cast(AdapterConfig, cfg)).companions(cfg))

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter and free its tensors."""
        if isinstance(self.base_model, Tuner):
            self.base_model.delete_adapter(adapter_name)
            return
        if adapter_name not in self._configs:
            raise AdapterError(f"no adapter is called {adapter_name!r}; there are {listing(self._configs)}")
        if len(self._configs) == 1:
            raise AdapterError(f"{adapter_name!r} is the only prompt adapter; use get_base_model() instead")
        del self._configs[adapter_name], self.prompt_encoder[adapter_name]
        for head in inject.switches(self.base_model):
            head.remove(adapter_name)
        if adapter_name in self._active:
            self.set_adapter(next(iter(self._configs)))

    # what Hugging Face's code asks of a model
    def prepare_model_for_gradient_checkpointing(self, model: nn.Module) -> nn.Module:
        """Let gradients flow through a checkpointed frozen base: its input embeddings are made to require them."""
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()  # type: ignore[operator]
        return model

    def get_layer_status(self) -> Any:
        """See `trimtab.get_layer_status`."""
        from .status import get_layer_status

        return get_layer_status(self)

    def get_model_status(self) -> Any:
        """See `trimtab.get_model_status`."""
        from .status import get_model_status

        return get_model_status(self)

    def get_prompt(self, batch_size: int, **kwargs: Any) -> Any:
        """The active prompt for a batch, (batch, tokens, dim), or its key-value cache; `kwargs`: the method's own."""
        return prompt.get_prompt(self, batch_size, kwargs)

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key in ("base_model", "_configs", "_active", "prompt_encoder"):
                raise
        return getattr(self.base_model, key)

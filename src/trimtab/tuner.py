"""`Tuner`: a base model with weight adapters in it, and what one does with them: switch, merge, take out.

It is `PeftModel.base_model`; the base model itself is its `model`. Every operation checks all layers before it changes
the first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import combine, inject
from .config import AdapterConfig
from .errors import AdapterError, MergeError, listing, warn
from .layer import AdapterLayer, Dequantize, Owned, WeightError
from .method import method_of
from .shared import trained_together
from .watch import forget
from .wrappers import ModulesToSaveWrapper


@dataclass
class MergeReport:
    """What merging lost by storing the float32 result in the base's number format, layer by layer."""

    layers: list[WeightError] = field(default_factory=list)

    @property
    def largest(self) -> float:
        """The largest absolute error of any weight."""
        return max((e.largest for e in self.layers), default=0.0)

    @property
    def mean(self) -> float:
        """The mean over layers of their mean absolute error."""
        return sum(e.mean for e in self.layers) / max(1, len(self.layers))

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda e: e.largest, default=None)
        where = f" (in {worst.path})" if worst else ""
        text = (
            f"merged {len(self.layers)} layers; weight error: largest {self.largest:.3g}{where}, mean {self.mean:.3g}"
        )
        if codecs := sorted({e.codec for e in self.layers if e.codec}):
            again = sum(bool(e.codec) for e in self.layers)
            text += (
                f"; {again} of them were quantised again ({', '.join(codecs)}), which may undo small updates: "
                "merge_and_unload(dequantize=True) stores them as plain weights instead"
            )
        return text


class Tuner(nn.Module):
    """A base model with weight adapters. Attributes that it lacks are looked up in the base model."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: AdapterConfig | dict[str, AdapterConfig],
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        state_dict: Any = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, Any] = {}
        self.merge_report: MergeReport | None = None
        self._switches: list[AdapterLayer | ModulesToSaveWrapper] | None = None
        self._owned: dict[str, list[Owned]] = {}
        configs = peft_config if isinstance(peft_config, dict) else {adapter_name: peft_config}
        for name, cfg in configs.items():
            self.add(name, cfg, empty=low_cpu_mem_usage, autocast=autocast_adapter_dtype, state_dict=state_dict)
        self._active: tuple[str, ...] = ()
        if configs:
            self.set_adapter(next(iter(configs)), inference_mode=all(c.inference_mode for c in configs.values()))

    def add(
        self, name: str, cfg: AdapterConfig, empty: bool = False, autocast: bool = True, state_dict: Any = None
    ) -> None:
        """Put another adapter in; it is not active yet. Raises before anything is changed."""
        if any(layer.merged_adapters for layer in self.layers):
            raise AdapterError(
                f"adapter {name!r} cannot be added while {listing(self.merged_adapters)} is merged; unmerge first"
            )
        inject.inject(self.model, cfg, name, empty=empty, autocast=autocast, state_dict=state_dict)
        self.peft_config[name] = cfg
        self._switches = None
        for key, shared in trained_together(self.model).items():
            self._modules[key] = shared
        self._train(name, False)

    # what there is
    @property
    def layers(self) -> list[AdapterLayer]:
        """The adapter layers, in the model's order."""
        return [s for s in self.switches if isinstance(s, AdapterLayer)]

    @property
    def switches(self) -> list[AdapterLayer | ModulesToSaveWrapper]:
        """The adapter layers and the modules trained in full."""
        if self._switches is None:
            self._switches = list(inject.switches(self.model))
        return self._switches

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act, in the order in which they compose."""
        return list(self._active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The adapter that acts, or the list of them when there are several."""
        return self._active[0] if len(self._active) == 1 else list(self._active)

    @property
    def merged_adapters(self) -> list[str]:
        """The adapters that are merged into the base weights."""
        return list(dict.fromkeys(n for layer in self.layers for n in layer.merged_adapters))

    def after_step(self, step: int) -> None:
        """Tell the active adapters' methods that a training step's gradients are there, before they are cleared."""
        for name in self._active:
            cfg = self.peft_config[name]
            layers = [layer for layer in self.layers if name in layer.adapters]
            method_of(cfg).after_step(layers, name, cfg, step)

    update_and_allocate = after_step

    def known(self, names: str | Sequence[str] | None) -> list[str]:
        """These names (the active ones for None) as a list. Raises `AdapterError` for one that is no adapter."""
        wanted = self.active_adapters if names is None else [names] if isinstance(names, str) else names
        wanted = list(dict.fromkeys(wanted))
        if unknown := [n for n in wanted if n not in self.peft_config]:
            raise AdapterError(f"no adapter is called {listing(unknown)}; there are {listing(self.peft_config)}")
        return wanted

    # switch
    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Let these adapters act, in this order, and let exactly these be trained (none with `inference_mode`)."""
        names = self.known(adapter_name)
        self.check_heads(names)
        if self.merged_adapters:
            warn("adapters cannot be switched while merged: unmerged first")
            self.unmerge_adapter()
        self._active = tuple(names)
        for layer in self.switches:
            layer.activate(names)
        configs = [self.peft_config[name] for name in names]
        trained = {*names, *(n for cfg in configs for n in method_of(cfg).trained_along(cfg))}
        for name in self.peft_config:
            self._train(name, name in trained and not inference_mode)

    def _train(self, name: str, on: bool) -> None:
        """Switch an adapter's gradients: over its tensors as they lie in their modules, found once, for speed."""
        if name not in self._owned:
            self._owned[name] = [o for layer in self.switches for o in layer.owned(name)]
        for held, key, trainable in self._owned[name]:
            parameter = held.get(key)
            if parameter is not None and parameter.requires_grad != (wanted := on and trainable):
                parameter.requires_grad = wanted

    def check_heads(self, names: Sequence[str]) -> None:
        """Raise `AdapterError` when a module is trained in full by more than one of these adapters."""
        for wrapper in self.switches:
            if isinstance(wrapper, ModulesToSaveWrapper):
                wrapper.held(names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Switch the gradients of these adapters on or off, whichever are active."""
        for name in self.known(adapter_names):
            self._train(name, requires_grad)

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act again."""
        for layer in self.switches:
            layer.enable(True)

    def disable_adapter_layers(self) -> None:
        """Let the model compute as if there were no adapters; merged weights step aside too."""
        for layer in self.switches:
            layer.enable(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter and free its tensors; another becomes active if it was the only active one."""
        (name,) = self.known([adapter_name])
        if name in self.merged_adapters:
            raise MergeError(f"adapter {name!r} is merged; unmerge it before deleting it")
        for layer in self.switches:
            layer.remove(name)
        forget(self.model, name)
        del self.peft_config[name]
        self._owned.pop(name, None)
        left = [n for n in self._active if n != name] or list(self.peft_config)[:1]
        if left and tuple(left) != self._active:
            self.set_adapter(left)
        self._active = tuple(left)

    add_weighted_adapter = combine.add_weighted_adapter

    # merge
    def check_merge(self, names: Sequence[str], safe_merge: bool, dequantize: Dequantize = False) -> list[AdapterLayer]:
        """The layers that merging these adapters will change. Raises `MergeError` with all that forbids it."""
        layers = [layer for layer in self.layers if any(n in layer.adapters for n in names)]
        wrong = []
        for layer in layers:
            here = [n for n in names if n in layer.adapters and n not in layer.merged_adapters]
            wrong += layer.check_merge(here, safe_merge, dequantize)
        if wrong:
            raise MergeError(f"{listing(names)} cannot be merged, nothing was changed: " + "; ".join(wrong[:8]))
        return layers

    def merge_adapter(
        self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False, keep_base: bool = True
    ) -> MergeReport:
        """Put adapters (the active ones by default) into the base weights, computed in float32.

        `safe_merge` computes every merged weight once beforehand and refuses NaN or infinity in any. `keep_base` keeps
        the base's tensors, so that `unmerge_adapter` is exact to the bit; it costs the memory of the adapted weights.
        Raises `MergeError`, with nothing changed, when any layer cannot be merged.
        """
        names = self.known(adapter_names)
        return self._merge(self.check_merge(names, safe_merge), names, keep_base)

    def _merge(
        self, layers: Iterable[AdapterLayer], names: list[str], keep_base: bool, dequantize: Dequantize = False
    ) -> MergeReport:
        done = []
        for layer in layers:
            here = [n for n in names if n in layer.adapters and n not in layer.merged_adapters]
            if here:
                done.append(layer.merge_in(here, keep_base, dequantize))
        self.merge_report = MergeReport(done)
        return self.merge_report

    def unmerge_adapter(self) -> None:
        """Take merged adapters out again; the base's tensors come back bit for bit."""
        if any(layer.merged_adapters and layer._base is None for layer in self.layers):
            raise MergeError("merged without keeping the base (keep_base=False); load the base model again")
        for layer in self.layers:
            layer.unmerge()

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
        dequantize: Dequantize = False,
    ) -> nn.Module:
        """The base model with these adapters (the active ones by default) merged in and no wrapper left.

        `dequantize`: adapted layers of a quantised base become plain ones (True, or their number format), rather than
        being quantised again with the adapter in them. `merge_report` tells what storing the weights lost. Raises
        `MergeError` with nothing changed.
        """
        names = self.known(adapter_names)
        self.check_heads(names)
        if dequantize:  # what is merged by now was quantised
            names = list(dict.fromkeys([*self.merged_adapters, *names]))
        layers = self.check_merge(names, safe_merge, dequantize)
        if dequantize:
            self.unmerge_adapter()
        self._merge(progress(layers) if progressbar else layers, names, False, dequantize)
        for wrapper in self.switches:
            if isinstance(wrapper, ModulesToSaveWrapper):
                wrapper.activate(names)
        inject.replace(self.model, merge=True)
        self._switches = None
        settle_ties(self.model)
        return self.model

    def unload(self) -> nn.Module:
        """The base model as it was, with no wrapper left."""
        self.unmerge_adapter()
        inject.replace(self.model, merge=False)
        self._switches = None
        return self.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward."""
        return self.model(*args, **kwargs)

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key == "model" or key == "_active":
                raise
        return getattr(self.model, key)


def progress(layers: Iterable[Any], what: str = "merging") -> Any:
    """The layers behind a progress bar, where `tqdm` is installed."""
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return layers
    return tqdm(layers, desc=what, unit="layer")


def settle_ties(model: nn.Module) -> None:
    """Tell the configuration that input and output embeddings are no longer tied, where a merge made them differ."""
    config: Any = getattr(model, "config", None)
    if config is None or not getattr(config, "tie_word_embeddings", False):
        return
    inputs, outputs = (getattr(model, f"get_{k}_embeddings", lambda: None)() for k in ("input", "output"))
    if inputs is None or outputs is None or inputs.weight is outputs.weight:
        return
    if inputs.weight.shape == outputs.weight.shape and bool((inputs.weight == outputs.weight).all()):
        outputs.weight = inputs.weight
    else:
        config.tie_word_embeddings = False

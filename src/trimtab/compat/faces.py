"""The classes that other people's code checks for: `isinstance` holds, though there is one adapter layer and one tuner.

Each method has `<Name>Model` and `<Name>Layer`, and a face for each kind of layer, made when first asked for. A face
has no instances of its own. What is an instance of it is said by its `kind` (`peft_type`), where it has one, and by its
`site`: `LoraLayer` is any adapter layer with a LoRA adapter, `lora.Linear` one that stands on a linear site.
"""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

from torch import nn

from ..config import CONFIGS
from ..layer import AdapterLayer
from ..prompt_method import PromptLearningConfig
from ..tuner import Tuner


class Face(type):
    """The class of faces."""

    stands_for: type[nn.Module]
    kind: str

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.stands_for) and cls.fits(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or (not cls.kind and issubclass(subclass, cls.stands_for))

    def fits(cls, instance: Any) -> bool:
        """Whether what the face stands for is what the face means."""
        raise NotImplementedError

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{cls.__name__} has no instances of its own: it is there for isinstance checks. Adapters are put into a "
            "model by get_peft_model or inject_adapter_in_model, and a new method is a subclass of trimtab.Method"
        )


class LayerFaceType(Face):
    """The class of faces of the adapter layer."""

    site: str
    layer: str

    def fits(cls, instance: Any) -> bool:
        if cls.kind and all(getattr(a.method, "name", "") != cls.kind for a in instance.adapters.values()):
            return False
        base = type(instance.get_base_layer()).__name__
        return cls.site in ("", instance.site.kind) and cls.layer in ("", base)


class BaseTunerLayer(metaclass=LayerFaceType):
    """Any adapter layer."""

    stands_for: ClassVar[type[nn.Module]] = AdapterLayer
    kind: ClassVar[str] = ""
    site: ClassVar[str] = ""
    layer: ClassVar[str] = ""
    adapter_layer_names: ClassVar[tuple[str, ...]] = ()
    """The names under which the method's tensors stand in a layer."""


class TunerFaceType(Face):
    """The class of faces of the tuner; calling one makes a tuner, as the documentation of PEFT shows."""

    def fits(cls, instance: Any) -> bool:
        return not cls.kind or any(c.kind == cls.kind for c in instance.peft_config.values())

    def __call__(cls, *args: Any, **kwargs: Any) -> Tuner:
        return Tuner(*args, **kwargs)


class BaseTuner(metaclass=TunerFaceType):
    """Any tuner."""

    stands_for: ClassVar[type[nn.Module]] = Tuner
    kind: ClassVar[str] = ""


def on(site: str, parent: LayerFaceType, name: str, layer: str = "") -> Any:
    """The face of `parent` layers on one kind of site, and of one class of base layer where the kind has several."""
    doc = f"A {parent.__name__} on {layer or f'a site of kind {site!r}'}."
    return LayerFaceType(name, (parent,), {"site": site, "layer": layer, "__doc__": doc, "__module__": __name__})


SITES = {
    "Linear": ("linear", ""),
    "Embedding": ("embedding", ""),
    "Conv1d": ("conv", "Conv1d"),
    "Conv2d": ("conv", "Conv2d"),
    "Conv3d": ("conv", "Conv3d"),
    "MultiheadAttention": ("attention", ""),
    "ParamWrapper": ("parameter", ""),
}
"""Kind of site, and class of the base layer where the kind has several, by the name of a method's layer class."""
OTHERWISE = {"factorization": "split"}
"""Functions that are imported from a method's modules under another name than ours."""


class TunerModule(ModuleType):
    """What stands for `peft.tuners.<method>`, and for its `config`, `layer` and `model`."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(path, f"{kind}, under the names that Hugging Face PEFT gave its parts.")
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(path, None, is_package=True)
        config = CONFIGS[kind]
        stem = config.__name__.removesuffix("Config")
        own = vars(sys.modules[config.__module__])
        vars(self).update({k: v for k, v in own.items() if getattr(v, "__module__", "") == config.__module__})
        vars(self).update({k: own[v] for k, v in OTHERWISE.items() if v in own})
        if not issubclass(config, PromptLearningConfig):
            doc = f"an adapter layer with a {kind} adapter."
            self.layer_face = LayerFaceType(
                f"{stem}Layer", (BaseTunerLayer,), {"kind": kind, "__doc__": doc.capitalize()}
            )
            doc = f"A tuner with a {kind} adapter."
            vars(self)[f"{stem}Layer"] = self.layer_face
            vars(self)[f"{stem}Model"] = TunerFaceType(f"{stem}Model", (BaseTuner,), {"kind": kind, "__doc__": doc})

    def __getattr__(self, name: str) -> Any:
        if name not in SITES or "layer_face" not in vars(self):
            raise AttributeError(f"{self.__name__} has no {name!r}")
        site, layer = SITES[name]
        face = vars(self)[name] = on(site, self.layer_face, name, layer)
        return face


def provide(package: str, kind: str, more: Mapping[str, ModuleType] = MappingProxyType({})) -> dict[str, Any]:
    """Let `<package>.<method>` and what is below it be imported; the module by its name, and its tuner's face.

    `more` are modules to be found below it by another name, whose classes and functions the method's module has too.
    """
    name = kind.lower()
    module = TunerModule(f"{package}.{name}", kind)
    for below in ("", ".config", ".layer", ".model"):
        sys.modules[f"{package}.{name}{below}"] = module
    for below in ("config", "layer", "model"):
        vars(module)[below] = module
    for below, beside in more.items():
        sys.modules[f"{package}.{name}.{below}"] = vars(module)[below] = beside
        vars(module).update({k: v for k, v in vars(beside).items() if getattr(v, "__module__", "") == beside.__name__})
    faces = {k: v for k, v in vars(module).items() if isinstance(v, type) and not isinstance(v, LayerFaceType)}
    return {name: module} | faces


def tuner_faces() -> dict[str, TunerFaceType]:
    """The face of each weight method's tuner by its name, `LoraModel` and its like."""
    found = [
        v for name in sorted(sys.modules) if isinstance(m := sys.modules[name], TunerModule) for v in vars(m).values()
    ]
    return {v.__name__: v for v in found if isinstance(v, TunerFaceType)}

"""The classes that other people's code checks for: `isinstance` holds, though there is one adapter layer and one tuner.

A face has no instances of its own. What is an instance of it is said by its `kind` (`peft_type`), where it has one, and
by its `site`: `LoraLayer` is any adapter layer with a LoRA adapter, `lora.Linear` one that stands on a linear site.
"""

from typing import Any, ClassVar

from torch import nn

from ..layer import AdapterLayer
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


class LoraModel(BaseTuner):
    """A tuner with a LoRA adapter."""

    kind = "LORA"


class IA3Model(BaseTuner):
    """A tuner with an (IA)^3 adapter."""

    kind = "IA3"


class LoHaModel(BaseTuner):
    """A tuner with a LoHa adapter."""

    kind = "LOHA"


class LoKrModel(BaseTuner):
    """A tuner with a LoKr adapter."""

    kind = "LOKR"


class VeraModel(BaseTuner):
    """A tuner with a VeRA adapter."""

    kind = "VERA"


class LoraLayer(BaseTunerLayer):
    """An adapter layer with a LoRA adapter."""

    kind = "LORA"
    adapter_layer_names = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class IA3Layer(BaseTunerLayer):
    """An adapter layer with an (IA)^3 adapter."""

    kind = "IA3"
    adapter_layer_names = ("ia3_l",)


class LoHaLayer(BaseTunerLayer):
    """An adapter layer with a LoHa adapter."""

    kind = "LOHA"
    adapter_layer_names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")


class LoKrLayer(BaseTunerLayer):
    """An adapter layer with a LoKr adapter."""

    kind = "LOKR"
    adapter_layer_names = (
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    )  # fmt: skip


class VeraLayer(BaseTunerLayer):
    """An adapter layer with a VeRA adapter."""

    kind = "VERA"
    adapter_layer_names = ("vera_lambda_b", "vera_lambda_d")


def on(site: str, parent: LayerFaceType, name: str, layer: str = "") -> Any:
    """The face of `parent` layers on one kind of site, and of one class of base layer where the kind has several."""
    doc = f"A {parent.__name__} on {layer or f'a site of kind {site!r}'}."
    return LayerFaceType(name, (parent,), {"site": site, "layer": layer, "__doc__": doc, "__module__": __name__})

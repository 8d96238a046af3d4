"""The methods of the core: what may be said of one is read off its config's fields."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, get_type_hints

from pydantic import Field, create_model, model_validator

import trimtab
from trimtab.errors import TrimtabError
from trimtab.lab.methods.base import Method
from trimtab.lab.tasks.base import Loaded

SET_BY_THE_LAB = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    "tokenizer_name_or_path",
}


class Adapter(Method):
    """A parameter-efficient method of the core; its options are the fields of the method's config."""

    config: ClassVar[type[Any]]

    quantize: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="Store the frozen base in fewer bits; `lora` with `nf4` is QLoRA."
    )

    @property
    def learning_rate(self) -> float:
        return 1e-2 if self.build().is_prompt_learning else 1e-3

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.build()
        except (TypeError, ValueError, TrimtabError) as error:
            raise ValueError(str(error)) from None
        return self

    def build(self, **derived: Any) -> Any:
        """The core's config of this method; options of the experiment come before what is derived from the model."""
        known = {field.name for field in dataclasses.fields(self.config)}
        given = self.model_dump(exclude_unset=True, exclude=set(Method.model_fields) | {"quantize"})
        return self.config(**{key: value for key, value in derived.items() if key in known} | given)

    def wrap(self, loaded: Loaded, source: str, task_type: str) -> Loaded:
        new_modules = loaded.new_modules or None
        self.quantize_base(loaded)
        config = self.build(task_type=task_type, tokenizer_name_or_path=source, modules_to_save=new_modules)
        return dataclasses.replace(loaded, model=trimtab.get_peft_model(loaded.model, config))

    def load(self, source: str, folder: str, loader: Callable[[str], Loaded]) -> Loaded:
        base = loader(source)
        self.quantize_base(base)
        return dataclasses.replace(base, model=trimtab.PeftModel.from_pretrained(base.model, folder))

    def quantize_base(self, loaded: Loaded) -> None:
        """Store the base as asked, but for what is new and will be trained."""
        if self.quantize is None:
            return
        codec = {"nf4": trimtab.NF4(double_quant=True), "int8": trimtab.Int8(), "fp8": trimtab.FP8()}[self.quantize]
        kept = {place: loaded.model.get_submodule(place) for place in loaded.new_modules}
        trimtab.quantize_(loaded.model, codec)
        for place, module in kept.items():
            loaded.model.set_submodule(place, module)


def adapter(kind: str, config: type[Any]) -> type[Adapter]:
    """The method of one config of the core."""
    hints = get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name not in SET_BY_THE_LAB and not field.metadata.get("reserved"):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            fields[field.name] = (hints[field.name], default)
    model = create_model(kind, __base__=Adapter, __doc__=config.__doc__, **fields)
    model.kind, model.config = kind, config
    return model

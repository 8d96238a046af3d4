"""What can be compared: full fine-tuning, and every method of the core under its PEFT type's name in lower case."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, create_model, model_validator

import trimtab
from trimtab.errors import TrimtabError
from trimtab.lab.schema import Name, Option, Strict
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


class Train(Strict):
    """How a method is trained."""

    epochs: PositiveInt = Field(3, description="Passes over the training examples; each ends in a checkpoint.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")
    learning_rate: PositiveFloat | None = Field(
        None, description="Peak rate; if left out, 5e-5 for full fine-tuning, 1e-3 for adapters, 1e-2 for prompts."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of the trained weights.")
    seed: int = Field(0, ge=0, description="Seed of the new head, the adapter, the order of examples and dropout.")

    def with_changes(self, changes: "Train") -> "Train":
        """These settings, with what `changes` sets explicitly in their place."""
        return self.model_copy(update=changes.model_dump(exclude_unset=True))


class Method(Option):
    """One way to fine-tune the model, with its options."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Name | None = Field(None, description="Names the result's folder; the method's own name if left out.")
    train: Train = Field(Train(), description="What this method trains differently from the experiment's `train`.")

    @property
    def title(self) -> str:
        """The name by which folders and tables call this entry."""
        return self.name or self.kind

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The peak rate where the experiment names none."""

    @abstractmethod
    def wrap(self, loaded: Loaded, source: str, task_type: str) -> Loaded:
        """Make a loaded model trainable by this method.

        Args:
            loaded: the model with its new head.
            source: folder or hub id that it came from.
            task_type: name of a `trimtab.TaskType`.
        """

    @abstractmethod
    def load(self, source: str, folder: str, loader: Callable[[str], Loaded]) -> Loaded:
        """The fine-tuned model.

        Args:
            source: folder or hub id of the model that was fine-tuned.
            folder: the method's folder.
            loader: loads the model of a folder or hub id.
        """


class Full(Method):
    """Full fine-tuning: every weight is trained."""

    kind = "full"

    @property
    def learning_rate(self) -> float:
        return 5e-5

    def wrap(self, loaded: Loaded, source: str, task_type: str) -> Loaded:
        return loaded

    def load(self, source: str, folder: str, loader: Callable[[str], Loaded]) -> Loaded:
        return loader(folder)


class Adapter(Method):
    """A parameter-efficient method of the core; its options are the fields of the method's config."""

    config: ClassVar[type[Any]]

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
        given = self.model_dump(exclude_unset=True, exclude={"name", "train"})
        return self.config(**{key: value for key, value in derived.items() if key in known} | given)

    def wrap(self, loaded: Loaded, source: str, task_type: str) -> Loaded:
        new_modules = loaded.new_modules or None
        config = self.build(task_type=task_type, tokenizer_name_or_path=source, modules_to_save=new_modules)
        return dataclasses.replace(loaded, model=trimtab.get_peft_model(loaded.model, config))

    def load(self, source: str, folder: str, loader: Callable[[str], Loaded]) -> Loaded:
        base = loader(source)
        return dataclasses.replace(base, model=trimtab.PeftModel.from_pretrained(base.model, folder))


@cache
def all_methods() -> dict[str, type[Method]]:
    """Every method by the name that experiment files use."""
    configs = {kind.lower(): config for kind, config in trimtab.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {"full": Full} | {kind: _adapter(kind, config) for kind, config in sorted(configs.items())}


def _adapter(kind: str, config: type[Any]) -> type[Adapter]:
    """The model of one method's options, read off its config's fields."""
    hints = get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name not in SET_BY_THE_LAB and not field.metadata.get("reserved"):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            fields[field.name] = (hints[field.name], default)
    model = create_model(kind, __base__=Adapter, __doc__=config.__doc__, **fields)
    model.kind, model.config = kind, config
    return model

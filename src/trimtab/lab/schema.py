"""Building blocks of the experiment file: models without stray keys, and choices among several models."""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Strict(BaseModel):
    """A model that refuses keys it does not know and cannot be changed once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"{name!r} names a folder: begin with a letter or a digit, go on with those and any of . _ -")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that is safe as the name of a folder."""


class Option(Strict):
    """A model that a `Choice` can choose."""

    kind: ClassVar[str]
    """The name it is chosen by."""


class Choice:
    """Marks a field that holds one of several options; written as `lora` or as `lora: {r: 8}`.

    Args:
        options: gives the options by their name; called when the field's model is built.
    """

    def __init__(self, options: Callable[[], Mapping[str, type[Option]]]) -> None:
        self.options = options

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Hashable, CoreSchema] = {
            kind: core_schema.no_info_before_validator_function(_unwrap, handler.generate_schema(option))
            for kind, option in self.options().items()
        }
        writer = core_schema.plain_serializer_function_ser_schema(_wrap)
        return core_schema.tagged_union_schema(choices, discriminator=_kind, serialization=writer)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        while "choices" not in schema:  # another validator stands around it
            schema = schema["schema"]
        named = [
            {"type": "object", "properties": {kind: handler(choice)}, "required": [kind], "additionalProperties": False}
            for kind, choice in schema["choices"].items()
        ]
        return {"anyOf": [{"enum": sorted(schema["choices"])}, *named]}


def _kind(value: Any) -> str | None:
    if isinstance(value, Option):
        return value.kind
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value))
    return value if isinstance(value, str) else None


def _unwrap(value: Any) -> Any:
    if isinstance(value, Option):
        return value
    return {} if isinstance(value, str) else next(iter(value.values())) or {}


def _wrap(option: Option) -> dict[str, Any]:
    return {option.kind: option.model_dump(exclude_unset=True)}

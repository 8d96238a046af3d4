"""What a user writes: adapter configurations, their JSON (`adapter_config.json`), and per-module patterns.

`PeftConfig` holds what every method has, `AdapterConfig` what every method that targets modules has. A method's own
configuration stands in the method's file. Field names and defaults are those of Hugging Face PEFT, because they are the
file format.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

from ._version import __version__
from .errors import AdapterFileError, ConfigError, listing, nearest, warn
from .files import find, write_text

CONFIG_NAME = "adapter_config.json"
PEFT_FORMAT = "0.21.2"  # the release of Hugging Face PEFT whose file format is written


class TaskType(str, Enum):
    """What the model is for; it chooses the `PeftModelFor...` class."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


_PEFT_TYPES = """
    PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING LORA ADALORA ADAMSS BOFT ADAPTION_PROMPT IA3 BEFT LILY
    LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA CPT MISS RANDLORA ROAD
    TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT SHADOW SUPERTUNING DEFT
""".split()

PeftType = Enum("PeftType", {name: name for name in _PEFT_TYPES}, type=str)  # type: ignore[misc]
PeftType.__doc__ = """The names of methods: those of the file format, then those of methods that are registered besides.

`CONFIGS` tells which of them this version offers."""


def name_method(kind: str) -> None:
    """Make a name a member of `PeftType`, if it is not one yet."""
    types: Any = PeftType
    if kind not in types.__members__:
        member = str.__new__(types, kind)
        member._name_ = member._value_ = kind
        setattr(types, kind, member)
        types._member_names_.append(kind)
        types._member_map_[kind] = types._value2member_map_[kind] = member


CONFIGS: dict[str, type["PeftConfig"]] = {}
"""Configuration class by `peft_type`; a method's configuration registers itself by naming its type."""


def reserved(default: Any) -> Any:
    """A field of the file format whose feature this version lacks: only its default is accepted."""
    if isinstance(default, type):
        return field(default_factory=default, metadata={"reserved": True})
    return field(default=default, metadata={"reserved": True})


def default_of(spec: Field[Any]) -> Any:
    """The default value of a dataclass field."""
    make: Any = spec.default_factory
    return spec.default if spec.default is not MISSING else make()


@dataclass(kw_only=True)
class PeftConfig:
    """What every adapter has. Raises `ConfigError` on construction when the fields contradict each other."""

    kind: ClassVar[str] = ""
    positive: ClassVar[tuple[str, ...]] = ()  # options that must be at least 1, or unset
    shares: ClassVar[tuple[str, ...]] = ()  # options that must be in [0, 1): dropouts and the like
    from_file: ClassVar[bool] = False  # on one whose adapter a file will fill: how it would start does not matter

    task_type: str | TaskType | None = None  # what the model is for, see `TaskType`
    peft_type: str | None = None  # the method; filled in by each method's own configuration
    auto_mapping: dict[str, Any] | None = None  # class and module of a base model without a task type
    peft_version: str | None = None  # release of the file format
    base_model_name_or_path: str | None = None  # what the adapter was trained on
    revision: str | None = None  # the base model's revision on its hub
    inference_mode: bool = False  # True: the adapter's parameters are frozen

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
            CONFIGS[kind] = cls
            name_method(kind)

    def __post_init__(self) -> None:
        self.peft_type = getattr(PeftType, self.kind) if self.kind else self.peft_type
        self.peft_version = self.peft_version or PEFT_FORMAT
        wrong = [*self._reserved_in_use(), *self.mistakes()]
        if wrong:
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(wrong))

    def _reserved_in_use(self) -> list[str]:
        return [
            f"`{f.name}`={getattr(self, f.name)!r} is not available in Trimtab {__version__}; leave it at its default"
            for f in fields(self)
            if f.metadata.get("reserved") and getattr(self, f.name) not in (default_of(f), None, False)
        ]

    def mistakes(self) -> list[str]:
        """All contradictions in the fields, each a sentence. A method's configuration adds its own to `super()`'s."""
        wrong = self.out_of_bounds(self.positive, self.shares)
        if self.task_type is not None and self.task_type not in list(TaskType):
            allowed = listing(t.value for t in TaskType)
            wrong.append(f"`task_type`={self.task_type!r} is unknown; choose one of {allowed}")
        return wrong

    def out_of_bounds(self, positive: Iterable[str], shares: Iterable[str]) -> list[str]:
        """Which of these options are below 1 though set, and which of those outside [0, 1), each a sentence."""
        values = [(k, getattr(self, k)) for k in positive]
        wrong = [f"`{k}`={v} must be at least 1" for k, v in values if v is not None and v < 1]
        return wrong + [f"`{k}`={v} must be in [0, 1)" for k in shares if not 0 <= (v := getattr(self, k)) < 1]

    # What Hugging Face's code asks of a configuration.
    @property
    def is_prompt_learning(self) -> bool:
        """True when the method prepends virtual tokens."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """True for LLaMA-Adapter."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, in the order of the class."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write `adapter_config.json`, atomically, into a folder, making it if needed."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        write_text(Path(save_directory) / CONFIG_NAME, text + "\n")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a JSON object describes; of the class its `peft_type` names.

        Unknown keys are left out with a warning: a file of a newer release may carry options that did not exist yet.
        Raises `ConfigError` for a `peft_type` that this version does not offer.
        """
        kind = values.get("peft_type") or cls.kind
        if kind and kind not in CONFIGS:
            raise ConfigError(
                f"`peft_type`={kind!r} is not offered by Trimtab {__version__}; "
                f"it offers {listing(sorted(CONFIGS), 50)}"
            )
        chosen: Any = CONFIGS[kind] if kind else cls
        known = {f.name for f in fields(chosen)}
        if unknown := sorted(values.keys() - known):
            hints = {key: nearest(key, known, 1) for key in unknown}
            named = ", ".join(f"{k!r}" + (f" (like {h[0]!r}?)" if h else "") for k, h in hints.items())
            warn(f"{chosen.__name__} does not know {named}; left out")
        return chosen(**{key: value for key, value in values.items() if key in known})

    @classmethod
    def from_json_file(cls, path_json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The object in a JSON file, as a dictionary."""
        try:
            values = json.loads(Path(path_json_file).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AdapterFileError(f"{path_json_file} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise AdapterFileError(f"{path_json_file} holds a {type(values).__name__}, not an object")
        return values

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Read `adapter_config.json` from a folder, or from a hub repository when there is no such folder.

        Keyword arguments that are fields of the configuration override the file; others go to the hub's download.
        """
        override = {f.name for f in fields(cls)}
        for kind in CONFIGS.values():
            override |= {f.name for f in fields(kind)}
        override -= {"revision"}
        path = find(
            pretrained_model_name_or_path,
            CONFIG_NAME,
            subfolder,
            **{k: v for k, v in kwargs.items() if k not in override},
        )
        values = cls.from_json_file(path) | {k: v for k, v in kwargs.items() if k in override}
        return cls.from_dict(values)

    def __contains__(self, key: str) -> bool:
        return hasattr(self, key)


def _plain(value: Any) -> Any:
    """JSON's idea of a value: sets become sorted lists, enums their names, classes as they are."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclass(kw_only=True)
class AdapterConfig(PeftConfig):
    """What every method has that adapts modules of the base model.

    Methods differ in which of the shared options their file format knows; what a class does not declare reads as unset.
    """

    layers_to_transform: ClassVar[Any] = None
    layers_pattern: ClassVar[Any] = None
    target_parameters: ClassVar[Any] = None
    trainable_token_indices: ClassVar[Any] = None
    layer_replication: ClassVar[Any] = None
    topmost: ClassVar[Any] = None  # of the targets, only so many, from the model's end
    ensure_weight_tying: ClassVar[bool] = False
    bias: ClassVar[str] = "none"
    rank_field: ClassVar[str] = "r"
    alpha_field: ClassVar[str] = "alpha"
    patterns: ClassVar[Mapping[str, str]] = {}  # other options than these two that a pattern sets by module
    own_bias: ClassVar[str] = ""  # what `bias` calls the biases of the adapted layers; "": by the method's name

    target_modules: str | list[str] | None = (
        None  # names (endings), one regular expression, "all-linear", or None: known default
    )
    exclude_modules: str | list[str] | None = None  # names or a regular expression to leave out
    modules_to_save: list[str] | None = None  # modules trained in full and saved beside the adapter

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, set)):
                setattr(self, name, sorted(value) if isinstance(value, set) else list(dict.fromkeys(value)))
        super().__post_init__()

    def mistakes(self) -> list[str]:
        wrong = super().mistakes()
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if isinstance(value := getattr(self, name), str):
                try:
                    re.compile(value)
                except re.error as error:
                    wrong.append(f"`{name}`={value!r} is not a regular expression: {error}")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            wrong.append(
                "`layers_to_transform` needs `target_modules` as a list; a regular expression can name layers itself"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            wrong.append("`layers_pattern` needs `layers_to_transform`")
        if self.bias not in (allowed := ("none", "all", self.own_bias or f"{self.kind.lower()}_only")):
            wrong.append(f"`bias`={self.bias!r} is unknown; choose one of {listing(allowed)}")
        return wrong

    def at(self, path: str) -> Self:
        """This configuration for one module: `rank_pattern` and the like resolved once, by the module's path."""
        changes = self.changes(path)
        if not changes:
            return self
        here = replace(self, **changes)
        vars(here).update({k: v for k, v in vars(self).items() if k not in self.__dataclass_fields__})
        return here

    def changes(self, path: str) -> dict[str, Any]:
        """The fields that are others for one module: here, those that `rank_pattern` and its like give it."""
        changes = {}
        usual = {self.rank_field: "rank_pattern", self.alpha_field: "alpha_pattern"}
        for option, pattern in (usual | dict(self.patterns)).items():
            for key, value in (getattr(self, pattern, None) or {}).items():
                if re.match(rf"(.*\.)?({key})$", path):
                    changes[option] = value
                    break
        return changes


ConfigLike = PeftConfig | Mapping[str, Any]
Check = Callable[[], list[str]]

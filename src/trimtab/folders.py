"""A model's adapters and their folders: saving them, loading them, and undoing a load that fails."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import inject, prompt_state, signs, state
from .config import AdapterConfig, PeftConfig
from .difference import from_start
from .errors import AdapterError, AdapterFileError, ConfigError, listing
from .files import find
from .fingerprint import METADATA_KEY, differences
from .method import method_of
from .save import contents, read, write_adapter, write_card
from .signs import Signs
from .state import WEIGHTS_NAME, LoadResult

if TYPE_CHECKING:
    from .model import PeftModel

TASKS: dict[str, type["PeftModel"]] = {}
"""The class of each task type."""


def task_class(cfg: PeftConfig, default: type["PeftModel"]) -> type["PeftModel"]:
    """The class that a configuration's task type names."""
    return TASKS.get(str(getattr(cfg.task_type, "value", cfg.task_type)), default)


def remembered(model: nn.Module) -> Callable[[], None]:
    """What brings a model back to how it is now: its layers, its parameters, and which of them are trained."""
    held = [(m, k, p, p.requires_grad) for m in model.modules() for k, p in m._parameters.items() if p is not None]

    def undo() -> None:
        inject.replace(model, merge=False)
        for module, key, parameter, trained in held:
            module._parameters[key] = parameter
            parameter.requires_grad_(trained)

    return undo


class AdapterFolders:
    """The part of `PeftModel` (`self` is one) that deals with folders."""

    def save_pretrained(
        self: Any,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        path_initial_model_for_weight_conversion: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Write each adapter's `adapter_config.json` and `adapter_model.safetensors`, atomically.

        The adapter "default" goes into the folder itself, others into sub-folders of their names. `state_dict`: whole
        tensors to save instead of the model's, by their names in memory (from a sharded model).
        `path_initial_model_for_weight_conversion`: folder of a LoRA adapter as it began, where its start changed the
        base (PiSSA and its like); what is written is then a LoRA of twice the rank for the base as it was.
        """
        if not safe_serialization:
            raise ConfigError(
                "`safe_serialization=False` would write pickled weights, which nothing here reads; leave it True"
            )
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        if unknown := [n for n in names if n not in self.peft_config]:
            raise AdapterError(
                f"`selected_adapters`: no adapter is called {listing(unknown)}; there are {listing(self.peft_config)}"
            )
        if Path(save_directory).is_file():
            raise AdapterFileError(f"{save_directory} is a file; a folder is needed")
        if not is_main_process:
            return
        initial = path_initial_model_for_weight_conversion
        files = {name: contents(self, name, save_embedding_layers, state_dict) for name in names}
        if initial is not None:
            files = {name: from_start(self, name, file, initial) for name, file in files.items()}
        for name, file in files.items():
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            write_adapter(folder, *file)
            if not (folder / "README.md").exists():
                write_card(self, name, folder)

    def create_or_update_model_card(self: Any, output_dir: str | Path) -> None:
        """Write the folder's `README.md`, or complete the head of the one that is there."""
        write_card(self, self.active_adapters[0], Path(output_dir))

    @classmethod
    def from_pretrained(
        cls: Any,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> "PeftModel":
        """A base model with an adapter from a folder or hub repository; of the class that its task type names.

        `is_trainable=False` freezes the adapter. `strict`: see `load_adapter`. Raises `AdapterFileError` when the
        adapter does not fit, the model left as it was.
        """
        cfg = config or PeftConfig.from_pretrained(model_id, **kwargs)
        cfg.inference_mode = not is_trainable
        vars(cfg)["from_file"] = True
        if isinstance(cfg, AdapterConfig):
            for name, source in (companions := method_of(cfg).companions(cfg)).items():
                beside = Path(model_id) / name
                companions[name] = str(beside) if beside.is_dir() else source
        chosen = cls if cls.mixed else task_class(cfg, cls)
        strict = state.STRICT.on if strict is None else strict  # when not, what the file lacks begins as ever
        undo = remembered(model)
        made = chosen(model, cfg, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage=strict)
        try:
            made._load(model_id, adapter_name, strict, **kwargs)
        except BaseException:
            undo()
            raise
        made.set_adapter(adapter_name, inference_mode=not is_trainable)
        return made.train(is_trainable)

    def load_adapter(
        self: Any,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> LoadResult:
        """Load an adapter from a folder or hub repository, as a new one, or into the one of that name.

        Every key of the file must find its place with its shape, none may be missing, and the base must be the one the
        adapter was made on (when the file tells); all that is wrong is raised at once as `AdapterFileError` and nothing
        is changed. `strict=False` makes it one warning. A file none of whose tensors fits is always refused.
        """
        new = adapter_name not in self.peft_config
        if new:
            cfg = PeftConfig.from_pretrained(model_id, **kwargs)
            cfg.inference_mode = not is_trainable
            vars(cfg)["from_file"] = True
            empty = state.STRICT.on if strict is None else strict
            self.add_adapter(adapter_name, cfg, empty, autocast_adapter_dtype)
        try:
            result = self._load(model_id, adapter_name, strict, **kwargs)
        except BaseException:
            if new:
                self.delete_adapter(adapter_name)
            raise
        if not is_trainable:
            self.eval()
        elif new and adapter_name in self.active_adapters:
            self.set_requires_grad(adapter_name, True)
        return result

    def _load(self: Any, model_id: str | Path, name: str, strict: bool | None, **kwargs: Any) -> LoadResult:
        strict = state.STRICT.on if strict is None else strict
        mapping = kwargs.pop("key_mapping", None)
        tensors, metadata = read(find(model_id, WEIGHTS_NAME, **kwargs), mapping)
        cfg = self.peft_config[name]
        if METADATA_KEY in metadata:
            trained = list(getattr(cfg, "modules_to_save", None) or [])
            wrong = differences(self.fingerprint, metadata[METADATA_KEY], trained)
            state.report_base(wrong, strict)
        if self.is_prompt_learning:
            return prompt_state.load(self, name, tensors, strict)
        found = Signs(self.base_model, name, metadata.get(signs.METADATA_KEY, "{}"))
        found.check(strict)
        result = state.load_state(self.base_model, name, cfg, tensors, "base_model.", strict)
        found.turn()
        return result

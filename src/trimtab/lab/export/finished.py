"""A finished method: how it was made, its model, and the examples that a result is proved on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.lab import assets
from trimtab.lab.config import Settings
from trimtab.lab.data import load_parts
from trimtab.lab.errors import RunError
from trimtab.lab.files import read_json
from trimtab.lab.folders import MethodFolder, RunFolder
from trimtab.lab.methods import Adapter
from trimtab.lab.models import tuned, untouched
from trimtab.lab.tasks.base import Facts, Loaded


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished method of a run."""

    folder: Path
    settings: Settings
    facts: Facts
    source: str
    """Folder or hub id of the model that was fine-tuned."""

    @classmethod
    def read(cls, folder: Path) -> "Finished":
        """The method of a folder; raises RunError if there is no finished one."""
        import transformers

        MethodFolder(folder).require_finished()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        settings = Settings.model_validate(read_json(folder / "settings.json"))
        source = assets.resolve(settings.model.source)
        return cls(folder=folder, settings=settings, facts=read_json(folder / "facts.json"), source=source)

    @property
    def adapter(self) -> Adapter | None:
        """The method, if its result is an adapter and not a whole model."""
        return self.settings.method if isinstance(self.settings.method, Adapter) else None

    def require_adapter(self, what: str) -> Adapter:
        """The method; raises RunError unless its result is an adapter."""
        if self.adapter is None:
            raise RunError(
                f"{self.folder}: the result of {self.settings.method.kind} is a whole model, so there is no adapter to "
                f"{what}; `trimtab export {self.folder} OUT --to hf` hands it on"
            )
        return self.adapter

    def require_weights(self, what: str) -> Adapter:
        """The method; raises RunError unless it is an adapter that acts on weights."""
        method = self.require_adapter(what)
        if method.build().is_prompt_learning:
            raise RunError(
                f"{self.folder}: {method.kind} acts on what the model reads, which no weight can hold, so there is "
                f"nothing to {what}; `trimtab export {self.folder} OUT --to peft` hands it on"
            )
        return method

    def base(self, place: str | None = None) -> Loaded:
        """The model that was fine-tuned, or the one of another folder, in the number format of the training."""
        loaded = untouched(self.settings, self.facts, place)
        loaded.model.eval()
        return loaded

    def tuned(self) -> Loaded:
        """The fine-tuned model."""
        loaded = tuned(self.settings, self.facts, self.folder)
        loaded.model.eval()
        return loaded

    def quantised_base(self) -> Loaded:
        """The model that was fine-tuned, in its own storage where the method quantises it."""
        loaded = self.base()
        if self.adapter:
            self.adapter.quantize_base(loaded)
        return loaded

    def base_processor(self) -> Any:
        """The tokenizer (or other processor) that the method was trained with."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError):  # images have none
            return None

    def rows(self, loaded: Loaded, number: int) -> list[dict[str, Any]]:
        """The first test examples, as the model's inputs."""
        test = load_parts(RunFolder(self.folder.parent).data)["test"]
        return self.settings.task.encode(loaded.processor, test[:number], self.facts)


@contextmanager
def weights_on_disk(folder: Path) -> Iterator[None]:
    """Within it, Transformers leaves the weights of the models that it loads in their files, read layer by layer."""
    from transformers import PreTrainedModel

    original = vars(PreTrainedModel)["from_pretrained"]

    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        return original.__func__(cls, *args, device_map={"": "disk"}, offload_folder=str(folder), **kwargs)

    PreTrainedModel.from_pretrained = classmethod(load)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original


def with_model(loaded: Loaded, model: Any) -> Loaded:
    """The same, with another model."""
    return replace(loaded, model=model)

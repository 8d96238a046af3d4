"""Baselines, whose result is a whole model: full fine-tuning, a linear probe, and the model as it is."""

from collections.abc import Callable

from trimtab.lab.errors import RunError
from trimtab.lab.methods.base import Method
from trimtab.lab.tasks.base import Loaded


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


class LinearProbe(Full):
    """Only the new head is trained, or the output layer where there is no new one; the rest is frozen."""

    kind = "linear_probe"

    @property
    def learning_rate(self) -> float:
        return 1e-2

    def wrap(self, loaded: Loaded, source: str, task_type: str) -> Loaded:
        model = loaded.model
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        heads = [model.get_submodule(path) for path in loaded.new_modules] or [output]
        if heads == [None]:
            raise RunError(f"linear_probe: {type(model).__name__} has no new head and no output layer to train")
        model.requires_grad_(False)
        for head in heads:
            head.requires_grad_(True)
        return loaded


class Untrained(Full):
    """The model as it is, measured without any training: what the others have to beat."""

    kind = "untrained"
    trains = False

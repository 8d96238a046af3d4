"""What the workbench asks of a method, and what every entry of `methods:` may say."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from trimtab.lab.schema import Name, Option
from trimtab.lab.tasks.base import Loaded
from trimtab.lab.training import Train


class Method(Option):
    """One way to fine-tune the model, with its options."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    trains: ClassVar[bool] = True
    """Whether there is anything to train."""

    name: Name | None = Field(None, description="Names the result's folder; the method's own name if left out.")
    train: Train = Field(Train(), description="What this method trains differently from the experiment's `train`.")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="Options to vary: `r: [4, 16]`, or `train.batch_size: [8, 32]`; each combination is a run."
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="A run with each of these seeds; if left out, one with the seed of `train`."
    )

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

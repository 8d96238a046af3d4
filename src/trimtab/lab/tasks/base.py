"""What the workbench asks of a task."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.lab.metrics import Metric, Row
from trimtab.lab.schema import Option

Example = dict[str, Any]
Facts = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to be fine-tuned."""

    model: Any
    """The Transformers model with the task's head."""
    processor: Any
    """Turns examples into tensors: a tokenizer, an image processor, ..."""
    new_modules: list[str]
    """Paths of the modules that no checkpoint filled."""


class Task(Option):
    """One kind of learning: which columns it reads, its model, its loss and its scores.

    Facts are what a model's head has to know of the data, such as the label names; they are found once, in the training
    examples, and are kept with every result.
    """

    peft_type: ClassVar[str]
    """Name of the `trimtab.TaskType`."""
    metrics: ClassVar[tuple[Metric, ...]]
    """What is measured. The first one draws the picture."""
    select_by: ClassVar[str]
    """Name of the metric that chooses the best checkpoint on the validation part."""

    classes: ClassVar[bool] = True
    """Whether targets are classes, which every part is to have in the same shares."""

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric that chooses is better when it is higher."""
        return next(metric.higher_is_better for metric in self.metrics if metric.name == self.select_by)

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns of the data that the task reads."""

    @abstractmethod
    def example(self, row: dict[str, Any]) -> Example | None:
        """A row as an example with tidy fields; None if something it needs is empty."""

    @abstractmethod
    def question(self, text: str) -> Example:
        """An example without a target, from what a user typed."""

    @abstractmethod
    def key(self, example: Example) -> str:
        """What two examples share if they are the same input."""

    @abstractmethod
    def target(self, example: Example) -> str:
        """What is to be learned of the input; two of them for one input are a conflict."""

    @abstractmethod
    def with_target(self, example: Example, target: str) -> Example:
        """The example, its conflict resolved."""

    @abstractmethod
    def facts(self, train: list[Example]) -> Facts:
        """What the model's head has to know of the training examples."""

    @abstractmethod
    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        """Load the model of a folder or hub id with a head that fits the facts."""

    @abstractmethod
    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        """Examples as the model's inputs, one dict each, unpadded; with `labels` where they have a target."""

    @abstractmethod
    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads a list of encoded examples into one batch."""

    @abstractmethod
    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        """A loss in place of the model's own, called as `loss(outputs, labels, num_items_in_batch)`; or None."""

    @abstractmethod
    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        """What the model says of one batch of tensors, an answer an example."""

    def answer(self, model: Any, processor: Any, examples: list[Example], facts: Facts, batch_size: int) -> list[Row]:
        """The examples with what the model says of them, in their order.

        Similar lengths go into a batch together, so that little is padded. The model is in evaluation mode meanwhile.
        """
        import torch

        encoded = self.encode(processor, examples, facts)
        order = sorted(range(len(encoded)), key=lambda place: len(encoded[place].get("input_ids", ())))
        collate, device = self.collator(processor), next(model.parameters()).device
        found: dict[int, Row] = {}
        training = model.training
        model.eval()
        try:
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                padded = collate([encoded[p] for p in places])
                batch = {key: value.to(device) for key, value in padded.items() if value is not None}
                with torch.no_grad():
                    answers = self.read(model, batch, processor, facts)
                found |= {p: examples[p] | answer for p, answer in zip(places, answers, strict=True)}
        finally:
            model.train(training)
        return [found[place] for place in range(len(examples))]

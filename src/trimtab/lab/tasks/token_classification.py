"""Token classification: a tag for each word, as of named entities."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from trimtab.lab.metrics import Row
from trimtab.lab.metrics.entities import ENTITIES
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load, numbered


class TokenClassification(Task):
    """Words, and a tag for each of them in the IOB2 scheme."""

    kind = "token_classification"
    peft_type = "TOKEN_CLS"
    metrics = ENTITIES
    select_by = "entity_f1"
    classes = False

    words: str = Field("tokens", description="The column with the words, a list; or a text with blanks between them.")
    tags: str = Field("tags", description="The column with a tag for each word, written in the same way.")
    max_length: PositiveInt = Field(128, description="Pieces of words after which an example is cut off.")

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if self.words == self.tags:
            raise ValueError(f"words and tags are both read from {self.words!r}; name two columns")
        return self

    def columns(self) -> list[str]:
        return [self.words, self.tags]

    def example(self, row: dict[str, Any]) -> Example | None:
        words, tags = (
            value.split() if isinstance(value, str) else [str(each) for each in (value or ())]
            for value in (row[self.words], row[self.tags])
        )
        if not words or len(words) != len(tags):
            return None
        return {"words": words, "tags": tags}

    def question(self, text: str) -> Example:
        return {"words": text.split()}

    def key(self, example: Example) -> str:
        return " ".join(example["words"]).casefold()

    def target(self, example: Example) -> str:
        return " ".join(example["tags"])

    def with_target(self, example: Example, target: str) -> Example:
        return example | {"tags": target.split()}

    def facts(self, train: list[Example]) -> Facts:
        return {"labels": sorted({tag for example in train for tag in example["tags"]})}

    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        return load("AutoModelForTokenClassification", source, revision, **numbered(facts["labels"]))

    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        """The first piece of each word has a label: its tag's number, and 0 for a tag that training never showed."""
        number = {label: place for place, label in enumerate(facts["labels"])}
        words = [example["words"] for example in examples]
        encoded = processor(words, is_split_into_words=True, truncation=True, max_length=self.max_length)
        rows = []
        for place, example in enumerate(examples):
            tags: list[str] = example.get("tags") or example["words"]
            known = [number.get(tag, 0) for tag in tags]
            labels = [-100 if word is None else known[word] for word in _firsts(encoded.word_ids(place))]
            rows.append({key: values[place] for key, values in encoded.items()} | {"labels": labels})
        return rows

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processor)

    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        return None

    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        labels = batch["labels"].tolist()
        logits = model(**{key: value for key, value in batch.items() if key != "labels"})["logits"]
        best = logits[:, -len(labels[0]) :].argmax(-1).tolist()  # what is put in front has no label
        return [
            {"predicted": [facts["labels"][tag] for label, tag in zip(row, tags, strict=True) if label >= 0]}
            for row, tags in zip(labels, best, strict=True)
        ]

    def answer(self, *args: Any, **options: Any) -> list[Row]:
        """As every task's; words that were cut off are outside of every entity."""
        rows = super().answer(*args, **options)
        missing = (["O"] * (len(row["words"]) - len(row["predicted"])) for row in rows)
        return [row | {"predicted": row["predicted"] + rest} for row, rest in zip(rows, missing, strict=True)]


def _firsts(words: list[int | None]) -> list[int | None]:
    """The word that each piece begins, None for later pieces and special tokens."""
    return [None if word == before else word for before, word in pairwise([None, *words])]


TASK = TokenClassification

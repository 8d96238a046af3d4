"""Token classification: a tag for each word, as of named entities."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from trimtab.lab.errors import DataError
from trimtab.lab.metrics import Metric, Row
from trimtab.lab.metrics.entities import ENTITIES, TagAccuracy
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load, numbered


class TokenClassification(Task):
    """Words, and a tag for each of them; or a text, and what is marked in it."""

    kind = "token_classification"
    peft_type = "TOKEN_CLS"
    classes = False

    words: str = Field("tokens", description="The column with the words, a list; or a text with blanks between them.")
    tags: str = Field("tags", description="The column with a tag for each word, written in the same way.")
    spans: str | None = Field(
        None, description="In place of tags: the column with what is marked in a text, a list of {start, end, label}."
    )
    scheme: Literal["iob2", "none"] = Field(
        "iob2", description="`iob2`: entities, tagged O, B-x and I-x; `none`: each word by itself, as parts of speech."
    )
    max_length: PositiveInt = Field(128, description="Pieces of words after which an example is cut off.")

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if len(set(self.columns())) < 2:
            raise ValueError(f"words and tags are both read from {self.words!r}; name two columns")
        if self.spans is not None and self.scheme == "none":
            raise ValueError("spans: what is marked in a text is tagged by the scheme `iob2`; leave `scheme` out")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return ENTITIES if self.scheme == "iob2" else (TagAccuracy(),)

    @property
    def select_by(self) -> str:  # type: ignore[override]
        return self.metrics[0].name

    def columns(self) -> list[str]:
        return [self.words, self.spans or self.tags]

    def example(self, row: dict[str, Any]) -> Example | None:
        if self.spans is not None:
            return _tagged(row[self.words], row[self.spans] or []) if (row[self.words] or "").strip() else None
        words, tags = (
            value.split() if isinstance(value, str) else [str(each) for each in (value or ())]
            for value in (row[self.words], row[self.tags])
        )
        if not words or len(words) != len(tags):
            return None
        return {"words": words, "tags": tags}

    def question(self, text: str) -> Example:
        return {"words": text.split() if self.spans is None else WORD.findall(text)}

    def key(self, example: Example) -> str:
        return " ".join(example["words"]).casefold()

    def target(self, example: Example) -> str:
        return " ".join(example["tags"])

    def with_target(self, example: Example, target: str) -> Example:
        return example | {"tags": target.split()}

    def facts(self, train: list[Example]) -> Facts:
        labels = sorted({tag for example in train for tag in example["tags"]})
        strange = [label for label in labels if label != "O" and label[:2] not in ("B-", "I-")]
        if strange and self.scheme == "iob2":
            raise DataError(
                f"tags that are not of the IOB2 scheme (O, B-x, I-x): {', '.join(strange)}; rewrite them, or set "
                "`scheme: none` where each word's tag stands by itself"
            )
        return {"labels": labels}

    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        loaded = load("AutoModelForTokenClassification", source, revision, **numbered(facts["labels"]))
        tokenizer = loaded.processor
        if getattr(tokenizer, "add_prefix_space", True):
            return loaded
        options = {"add_prefix_space": True, "pad_token": tokenizer.pad_token}  # a space tells where a word begins
        return replace(loaded, processor=type(tokenizer).from_pretrained(source, revision=revision, **options))

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

    def answer(self, model: Any, processor: Any, examples: list[Example], facts: Facts, batch_size: int) -> list[Row]:
        """As every task's; words that were cut off are outside of every entity."""
        rows = super().answer(model, processor, examples, facts, batch_size)
        missing = (["O"] * (len(row["words"]) - len(row["predicted"])) for row in rows)
        return [row | {"predicted": row["predicted"] + rest} for row, rest in zip(rows, missing, strict=True)]


WORD = re.compile(r"\w+|[^\w\s]")
"""Where the words of a text with spans are: runs of letters and digits, and every other sign by itself."""


def _tagged(text: str, spans: list[dict[str, Any]]) -> Example:
    """A text as words with tags; a word belongs to a span when a part of it does."""
    words = list(WORD.finditer(text))
    tags = ["O"] * len(words)
    for span in spans:
        inside = [n for n, word in enumerate(words) if word.start() < span["end"] and span["start"] < word.end()]
        if any(tags[number] != "O" for number in inside):
            raise DataError(f"a word has one tag, but spans {spans} mark one twice in {text!r}; keep one of them")
        for number in inside:
            tags[number] = f"{'B' if number == inside[0] else 'I'}-{span['label']}"
    return {"words": [word.group() for word in words], "tags": tags}


def _firsts(words: list[int | None]) -> list[int | None]:
    """The word that each piece begins, None for later pieces and special tokens."""
    return [None if word == before else word for before, word in pairwise([None, *words])]


TASK = TokenClassification

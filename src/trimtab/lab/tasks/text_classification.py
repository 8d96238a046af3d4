"""Text classification: one text, one of several labels."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, PositiveInt

from trimtab.lab.metrics.classification import CLASSIFICATION
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load, numbered


class TextClassification(Task):
    """One text, one of several labels."""

    kind = "text_classification"
    peft_type = "SEQ_CLS"
    metrics = CLASSIFICATION
    select_by = "accuracy"

    text: str = Field("text", description="The column with the text.")
    label: str = Field("label", description="The column with the label.")
    max_length: PositiveInt = Field(128, description="Tokens after which a text is cut off.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced` gives every class the same weight in the loss, however rare it is."
    )

    def columns(self) -> list[str]:
        return [self.text, self.label]

    def example(self, row: dict[str, Any]) -> Example | None:
        text, label = row[self.text], row[self.label]
        if text is None or label is None or not str(text).strip() or not str(label).strip():
            return None
        return {"text": str(text).strip(), "label": str(label).strip()}

    def question(self, text: str) -> Example:
        return {"text": text}

    def key(self, example: Example) -> str:
        return " ".join(unicodedata.normalize("NFKC", example["text"]).casefold().split())

    def target(self, example: Example) -> str:
        return str(example["label"])

    def with_target(self, example: Example, target: str) -> Example:
        return example | {"label": target}

    def facts(self, train: list[Example]) -> Facts:
        return {"labels": sorted({example["label"] for example in train})}

    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        loaded = load("AutoModelForSequenceClassification", source, revision, **numbered(facts["labels"]))
        loaded.model.config.pad_token_id = loaded.processor.pad_token_id
        return loaded

    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        number = {label: index for index, label in enumerate(facts["labels"])}
        texts = processor([example["text"] for example in examples], truncation=True, max_length=self.max_length)
        rows = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
        return [
            row | ({"labels": number[example["label"]]} if "label" in example else {})
            for row, example in zip(rows, examples, strict=True)
        ]

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor)

    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        if self.class_weights == "none":
            return None
        import torch

        counts = Counter(example["label"] for example in train)
        weights = torch.tensor([len(train) / len(counts) / counts[label] for label in facts["labels"]])

        def weighted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            logits = outputs["logits"].float()
            return torch.nn.functional.cross_entropy(logits, labels, weights.to(logits.device))

        return weighted

    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        return classified(model(**batch)["logits"], facts["labels"])


def classified(logits: Any, labels: list[str]) -> list[Answer]:
    """The answers of logits (examples, labels)."""
    return [
        {
            "predicted": labels[int(row.argmax())],
            "probabilities": {label: round(float(share), 6) for label, share in zip(labels, row, strict=True)},
        }
        for row in logits.float().softmax(-1).cpu().numpy()
    ]


TASK = TextClassification

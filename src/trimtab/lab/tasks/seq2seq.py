"""Sequence to sequence: translation and summaries, by models with an encoder and a decoder."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, PositiveInt

from trimtab.lab.metrics import Metric
from trimtab.lab.metrics.generation import SUMMARY, TRANSLATION
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load


class Seq2Seq(Task):
    """A text, and the text to write for it."""

    kind = "seq2seq"
    peft_type = "SEQ_2_SEQ_LM"
    classes = False

    input: str = Field("source", description="The column with the text to read.")
    output: str = Field("target", description="The column with the text to write.")
    prefix: str = Field("", description="Put before every source, as `translate English to French: `.")
    measure: Literal["translation", "summary"] = Field(
        "translation", description="`translation`: BLEU, chrF and TER; `summary`: ROUGE-1, -2 and -L."
    )
    source_language: str | None = Field(None, description="Code of the tokenizer, for multilingual models.")
    target_language: str | None = Field(None, description="Code of the tokenizer; the first token that is written.")
    max_source_length: PositiveInt = Field(128, description="Tokens after which a source is cut off.")
    max_target_length: PositiveInt = Field(128, description="Tokens after which a target, or an answer, ends.")
    beams: PositiveInt = Field(1, description="Beams of the search for an answer.")

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return TRANSLATION if self.measure == "translation" else SUMMARY

    @property
    def select_by(self) -> str:  # type: ignore[override]
        return "chrf" if self.measure == "translation" else "rougeL"

    def columns(self) -> list[str]:
        return [self.input, self.output]

    def example(self, row: dict[str, Any]) -> Example | None:
        source, target = (str(row[column] or "").strip() for column in self.columns())
        return {"source": source, "target": target} if source and target else None

    def question(self, text: str) -> Example:
        return {"source": text}

    def key(self, example: Example) -> str:
        return " ".join(example["source"].split())

    def target(self, example: Example) -> str:
        return str(example["target"])

    def with_target(self, example: Example, target: str) -> Example:
        return example | {"target": target}

    def facts(self, train: list[Example]) -> Facts:
        return {}

    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        loaded = load("AutoModelForSeq2SeqLM", source, revision)
        for name, code in (("src_lang", self.source_language), ("tgt_lang", self.target_language)):
            if code is not None:
                setattr(loaded.processor, name, code)
        if self.target_language is not None:
            first = loaded.processor.convert_tokens_to_ids(self.target_language)
            loaded.model.generation_config.forced_bos_token_id = first
        return loaded

    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        sources = [self.prefix + example["source"] for example in examples]
        encoded = processor(sources, truncation=True, max_length=self.max_source_length)
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        if examples and "target" in examples[0]:
            targets = [example["target"] for example in examples]
            written = processor(text_target=targets, truncation=True, max_length=self.max_target_length).input_ids
            rows = [row | {"labels": ids} for row, ids in zip(rows, written, strict=True)]
        return rows

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(processor)

    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        return None

    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
        written = model.generate(**inputs, max_new_tokens=self.max_target_length, num_beams=self.beams, do_sample=False)
        return [{"predicted": text.strip()} for text in processor.batch_decode(written, skip_special_tokens=True)]


TASK = Seq2Seq

"""Causal language models: plain text, instructions with their answers, and chats."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from trimtab.lab.metrics import Row
from trimtab.lab.metrics.generation import LANGUAGE
from trimtab.lab.tasks import tokens
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load


class CausalLM(Task):
    """Text to go on with. Name one of: `text`; `prompt` and `response`; `messages`."""

    kind = "causal_lm"
    peft_type = "CAUSAL_LM"
    metrics = LANGUAGE
    select_by = "perplexity"
    classes = False

    text: str | None = Field(None, description="The column with plain text; all of its tokens carry loss.")
    prompt: str | None = Field(None, description="The column with what is asked; its tokens carry no loss.")
    response: str | None = Field(None, description="The column with the answer, which carries the loss.")
    messages: str | None = Field(
        None, description="The column with a chat, a list of {role, content}; what the assistant says carries the loss."
    )
    template: str | None = Field(
        None, description="How a prompt is put, as `Q: {prompt}\\nA: `; the model's chat template if left out."
    )
    max_length: int = Field(
        256,
        ge=2,
        description="Tokens of an example; a longer text makes several, of a longer prompt the beginning is cut.",
    )
    pack: bool = Field(
        False, description="Train on texts behind each other, in blocks of max_length: nothing is padded."
    )
    max_new_tokens: PositiveInt = Field(64, description="Tokens of an answer to a new prompt.")
    samples: NonNegativeInt = Field(20, description="Test prompts whose answers are written out with the predictions.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [self.text is not None, self.prompt is not None or self.response is not None, self.messages is not None]
        if sum(forms) != 1 or (self.prompt is None) != (self.response is None):
            raise ValueError("name the columns of one form: `text`; or `prompt` and `response`; or `messages`")
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"template: {self.template!r} has no {{prompt}} in it")
        if self.pack and self.text is None:
            raise ValueError("pack: only plain `text` is packed; prompts and chats would see each other")
        return self

    def columns(self) -> list[str]:
        return [column for column in (self.text, self.prompt, self.response, self.messages) if column is not None]

    def example(self, row: dict[str, Any]) -> Example | None:
        if self.text is not None:
            return {"text": str(row[self.text])} if str(row[self.text] or "").strip() else None
        if self.messages is not None:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in row[self.messages] or ()]
            return {"messages": answered} if (answered := tokens.answered(turns)) else None
        prompt, response = (str(row[column] or "").strip() for column in self.columns())
        return {"prompt": prompt, "response": response} if prompt and response else None

    def question(self, text: str) -> Example:
        return {"messages": [{"role": "user", "content": text}]} if self.messages is not None else {"prompt": text}

    def key(self, example: Example) -> str:
        if "messages" in example:
            return "\n".join(turn["content"] for turn in example["messages"] if turn["role"] != "assistant")
        return str(example.get("prompt", example.get("text")))

    def target(self, example: Example) -> str:
        return str(example.get("response", ""))

    def with_target(self, example: Example, target: str) -> Example:
        return example | {"response": target} if "response" in example else example

    def facts(self, train: list[Example]) -> Facts:
        return {}

    def load(self, source: str, revision: str | None, facts: Facts) -> Loaded:
        loaded = load("AutoModelForCausalLM", source, revision)
        tokens.agree_on_end(loaded)
        return loaded

    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        """A row an example; of plain text as many as it takes, or with `pack` as few."""
        if self.pack and examples and "text" in examples[0]:
            joined = [token for example in examples for token in self._text(processor, example)]
            return tokens.blocks(joined, self.max_length)
        return [row for example in examples for row in self._rows(processor, example)]

    def _rows(self, processor: Any, example: Example) -> list[dict[str, Any]]:
        if "text" in example:
            return tokens.blocks(self._text(processor, example), self.max_length)
        runs = self._runs(processor, example)
        row = tokens.fitted(runs, self.max_length)
        if "response" not in example and not runs[-1][1]:  # a question
            del row["labels"]
        return [row]

    @staticmethod
    def _text(processor: Any, example: Example) -> list[int]:
        return tokens.begun(processor, example["text"]) + tokens.end(processor)

    def _runs(self, processor: Any, example: Example) -> list[tokens.Run]:
        """What is asked and what is answered, by the template or the tokenizer's; what was typed for a plain model."""
        if "messages" in example:
            return tokens.chat(processor, example["messages"])
        if self.template is None and processor.chat_template is not None and self.text is None:
            turns = [{"role": "user", "content": example["prompt"]}]
            answer = [{"role": "assistant", "content": example["response"]}] if "response" in example else []
            return tokens.chat(processor, turns + answer)
        template = self.template or ("{prompt}" if self.text is not None else "{prompt}\n")
        runs = [(tokens.begun(processor, template.replace("{prompt}", example["prompt"])), False)]
        return runs + ([(tokens.written(processor, example["response"]), True)] if "response" in example else [])

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return tokens.collator(processor.pad_token_id)

    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        return None

    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        if "labels" in batch:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
            width = batch["labels"].shape[1]
            return tokens.losses(logits[:, -width:-1], batch["labels"][:, 1:])  # what is put in front has no label
        written = model.generate(
            **batch, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=processor.pad_token_id
        )[:, batch["input_ids"].shape[1] :]
        return [{"predicted": text.strip()} for text in processor.batch_decode(written, skip_special_tokens=True)]

    def answer(self, model: Any, processor: Any, examples: list[Example], facts: Facts, batch_size: int) -> list[Row]:
        """As every task's; the rows of a text are summed up."""
        rows = [self._rows(processor, example) for example in examples]
        answers = iter(self.ask(model, processor, [row for each in rows for row in each], facts, batch_size))
        return [
            example | tokens.summed([next(answers) for _ in each]) for example, each in zip(examples, rows, strict=True)
        ]

    def show(self, model: Any, processor: Any, rows: list[Row], facts: Facts, batch_size: int) -> list[Row]:
        """The rows with what the model writes for the first prompts of them; None for the rest, and for plain text."""
        asked = [] if self.text is not None else [tokens.question(row) for row in rows[: self.samples]]
        said = [row["predicted"] for row in self.answer(model, processor, asked, facts, batch_size)]
        return [row | {"predicted": text} for row, text in zip_longest(rows, said)]

    def general(self) -> Task:
        return CausalLM(text=self.text or "text", max_length=self.max_length)


TASK = CausalLM

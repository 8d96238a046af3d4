"""Causal language models: plain text, instructions with their answers, and chats."""

from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from trimtab.lab.errors import DataError
from trimtab.lab.metrics.generation import LANGUAGE
from trimtab.lab.tasks.base import Answer, Example, Facts, Loaded, Task
from trimtab.lab.tasks.loading import load

Turns = list[dict[str, str]]


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
    max_length: PositiveInt = Field(256, description="Tokens of an example; of a longer prompt the beginning is cut.")
    max_new_tokens: PositiveInt = Field(64, description="Tokens of an answer to a new prompt.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [self.text is not None, self.prompt is not None or self.response is not None, self.messages is not None]
        if sum(forms) != 1 or (self.prompt is None) != (self.response is None):
            raise ValueError("name the columns of one form: `text`; or `prompt` and `response`; or `messages`")
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError(f"template: {self.template!r} has no {{prompt}} in it")
        return self

    def columns(self) -> list[str]:
        return [column for column in (self.text, self.prompt, self.response, self.messages) if column is not None]

    def example(self, row: dict[str, Any]) -> Example | None:
        if self.text is not None:
            return {"text": str(row[self.text])} if str(row[self.text] or "").strip() else None
        if self.messages is not None:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in row[self.messages] or ()]
            return {"messages": turns} if any(turn["role"] == "assistant" for turn in turns) else None
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
        return load("AutoModelForCausalLM", source, revision)

    def encode(self, processor: Any, examples: list[Example], facts: Facts) -> list[dict[str, Any]]:
        """Raises DataError when no token of an example would carry loss."""
        rows = [self._encode(processor, example) for example in examples]
        empty = [
            number for number, row in enumerate(rows) if "labels" in row and not any(x >= 0 for x in row["labels"])
        ]
        if empty:
            raise DataError(
                f"of {len(empty)} examples (the first is number {empty[0]}) no token carries loss within max_length="
                f"{self.max_length}; raise it, or drop these examples"
            )
        return rows

    def _encode(self, processor: Any, example: Example) -> dict[str, Any]:
        pieces = [(processor(example["text"]).input_ids + _end(processor), True)] if "text" in example else []
        pieces = pieces or self._pieces(processor, example)
        tokens = [token for ids, _ in pieces for token in ids]
        labels = [token if learned else -100 for ids, learned in pieces for token in ids]
        first = next((place for place, label in enumerate(labels) if label >= 0), len(tokens))
        cut = min(max(len(tokens) - self.max_length, 0), max(first - 1, 0))
        row = {"input_ids": tokens[cut:][: self.max_length], "labels": labels[cut:][: self.max_length]}
        row["attention_mask"] = [1] * len(row["input_ids"])
        asked = not ("text" in example or "response" in example or any(learned for _, learned in pieces))
        return {key: value for key, value in row.items() if key != "labels"} if asked else row

    def _pieces(self, processor: Any, example: Example) -> list[tuple[list[int], bool]]:
        """Runs of tokens, and whether they carry loss."""
        if "messages" in example:
            return _chat(processor, example["messages"])
        templated = self.template is None and processor.chat_template is not None
        if templated:
            turns = [{"role": "user", "content": example["prompt"]}]
            if "response" in example:
                turns.append({"role": "assistant", "content": example["response"]})
            return _chat(processor, turns)
        pieces = [(processor((self.template or "{prompt}\n").format(prompt=example["prompt"])).input_ids, False)]
        if "response" in example:
            answer = processor(example["response"], add_special_tokens=False).input_ids
            pieces.append((answer + _end(processor), True))
        return pieces

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        import torch

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            width = max(len(row["input_ids"]) for row in rows)
            fills = {"input_ids": processor.pad_token_id, "attention_mask": 0, "labels": -100}
            return {  # to the left where an answer is to be written behind, else to the right
                key: torch.tensor(
                    [
                        row[key] + [fills[key]] * (width - len(row[key]))
                        if "labels" in row
                        else [fills[key]] * (width - len(row[key])) + row[key]
                        for row in rows
                    ]
                )
                for key in rows[0]
            }

        return collate

    def loss(self, train: list[Example], facts: Facts) -> Callable[..., Any] | None:
        return None

    def read(self, model: Any, batch: dict[str, Any], processor: Any, facts: Facts) -> list[Answer]:
        import torch

        width = batch["input_ids"].shape[1]
        if "labels" not in batch:
            written = model.generate(
                **batch, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=processor.pad_token_id
            )[:, width:]
            return [{"predicted": text.strip()} for text in processor.batch_decode(written, skip_special_tokens=True)]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"]
        logits, labels = logits[:, -width:][:, :-1].float(), batch["labels"][:, 1:]  # what is put in front has no label
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counted = labels >= 0
        hits = (logits.argmax(-1) == labels) & counted
        sums = ((losses * counted).sum(1), hits.sum(1), counted.sum(1))
        return [
            {"nll": round(nll, 6), "hits": right, "tokens": number}
            for nll, right, number in zip(*(each.tolist() for each in sums), strict=True)
        ]


def _end(processor: Any) -> list[int]:
    return [] if processor.eos_token_id is None else [processor.eos_token_id]


def _chat(processor: Any, turns: Turns) -> list[tuple[list[int], bool]]:
    """The chat by the tokenizer's template, cut where the assistant begins and ends to speak.

    Raises DataError without a template, or when what a turn looks like depends on the turns behind it.
    """
    if processor.chat_template is None:
        raise DataError("the model has no chat template; use `prompt` and `response` with a `template`")
    pieces: list[tuple[list[int], bool]] = []
    done: list[int] = []
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        for end, prompt, learned in ((place, True, False), (place + 1, False, True)):
            ids = list(_applied(processor, turns[:end], prompt))
            if ids[: len(done)] != done:
                raise DataError(
                    "the chat template writes a turn otherwise once more turns follow; give `prompt` and `response`"
                )
            pieces.append((ids[len(done) :], learned))
            done = ids
    if turns and turns[-1]["role"] != "assistant":
        pieces.append((list(_applied(processor, turns, True))[len(done) :], False))
    return pieces


def _applied(processor: Any, turns: Turns, prompt: bool) -> list[int]:
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    return list(processor(text, add_special_tokens=False).input_ids)


TASK = CausalLM

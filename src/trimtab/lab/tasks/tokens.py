"""Runs of tokens for language models: which of them carry loss, and how they fit into a length."""

import logging
from collections.abc import Callable
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from trimtab.lab.errors import DataError
from trimtab.lab.metrics import Row
from trimtab.lab.tasks.base import Answer, Example, Loaded

logger = logging.getLogger(__name__)

Turns = list[dict[str, str]]
Run = tuple[list[int], bool]
"""Tokens, and whether they carry loss."""
SILENT = -100
"""The label of a token without loss."""


def begun(processor: Any, text: str) -> list[int]:
    """The tokens of a text that more is to follow, so without a token for its end."""
    tokens = list(processor(text).input_ids)
    while tokens and tokens[-1:] == end(processor):
        tokens.pop()
    return tokens


def end(processor: Any) -> list[int]:
    """The token for the end of a text, if there is one."""
    return [] if processor.eos_token_id is None else [processor.eos_token_id]


def agree_on_end(loaded: Loaded) -> None:
    """Let answers end with what the model stops at, where the tokenizer names another token, as converted ones may."""
    stops = loaded.model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else stops or []
    if stops and loaded.processor.eos_token_id not in stops:
        right = loaded.processor.convert_ids_to_tokens(stops[0])
        logger.warning(
            "the tokenizer ends with %s, the model with %s: that is taken", loaded.processor.eos_token, right
        )
        loaded.processor.eos_token = right


def written(processor: Any, text: str) -> list[int]:
    """The tokens of a text that follows others, and ends."""
    return list(processor(text, add_special_tokens=False).input_ids) + end(processor)


def chat(processor: Any, turns: Turns) -> list[Run]:
    """The chat by the tokenizer's template; learned is what begins where the assistant speaks.

    Raises:
        DataError: there is no template, or what a turn looks like depends on the turns behind it.
    """
    if processor.chat_template is None:
        raise DataError("the model has no chat template; use `prompt` and `response` with a `template`")

    def applied(until: int, prompt: bool) -> str:
        return str(processor.apply_chat_template(turns[:until], tokenize=False, add_generation_prompt=prompt))

    text = applied(len(turns), turns[-1]["role"] != "assistant")
    said = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    answers = [(applied(number, True), applied(number + 1, False)) for number in said]
    if not all(answer.startswith(asked) and text.startswith(answer) for asked, answer in answers):
        raise DataError(
            "the chat template writes a turn otherwise once more turns follow; give `prompt` and `response`"
        )
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [(len(asked), len(answer)) for asked, answer in answers]
    learned = [any(begin <= start < end for begin, end in ends) for start, _ in encoded.offset_mapping]
    pairs = groupby(zip(encoded.input_ids, learned, strict=True), key=itemgetter(1))
    return [([token for token, _ in group], carries) for carries, group in pairs]


def fitted(runs: list[Run], length: int) -> dict[str, list[int]]:
    """Runs of tokens as one row of at most `length`: of a long beginning without loss the first tokens are cut.

    What is too long all the same is cut at its end. The first token has no loss, since nothing predicts it.
    """
    tokens = list(chain.from_iterable(ids for ids, _ in runs))
    labels = [token if learned else SILENT for ids, learned in runs for token in ids]
    first = next((place for place, label in enumerate(labels) if label != SILENT), len(tokens))
    cut = min(max(len(tokens) - length, 0), max(first - 1, 0))
    return row(tokens[cut:][:length], [SILENT, *labels[cut + 1 :]][:length])


def blocks(tokens: list[int], length: int) -> list[dict[str, list[int]]]:
    """A long text as rows of at most `length`, in which every token but the very first carries loss once.

    A row begins with the last token of the one before, which predicts the first new one.
    """
    starts = range(0, max(len(tokens) - 1, 1), max(length - 1, 1))
    return [row(part, [SILENT, *part[1:]][: len(part)]) for part in (tokens[s : s + length] for s in starts)]


def row(tokens: list[int], labels: list[int]) -> dict[str, list[int]]:
    """Tokens as a model's inputs."""
    return {"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)}


def collator(pad: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Pads to the left where an answer is to be written behind, else to the right.

    What is padded has no label, so `pad` may be a token that is learned elsewhere, such as the end of a text.
    """
    import torch

    fills = {"input_ids": pad, "attention_mask": 0, "labels": SILENT}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            missing = [fill] * (width - len(values))
            return values + missing if "labels" in rows[0] else missing + values

        return {key: torch.tensor([padded(row[key], fills[key]) for row in rows]) for key in rows[0].keys() & fills}

    return collate


def losses(logits: Any, labels: Any) -> list[Answer]:
    """`nll`, `hits` and `tokens` of each example.

    Args:
        logits: (examples, tokens, vocabulary), each for the label at its place.
        labels: (examples, tokens), negative where there is no loss.
    """
    from torch.nn.functional import cross_entropy

    each = cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=SILENT)
    right = (logits.argmax(-1) == labels) & (labels >= 0)
    sums = (each.double().sum(1), right.sum(1), (labels >= 0).sum(1))
    return [
        {"nll": round(nll, 6), "hits": hits, "tokens": tokens}
        for nll, hits, tokens in zip(*(found.tolist() for found in sums), strict=True)
    ]


def summed(answers: list[Answer]) -> Answer:
    """The answer to an example from those to its rows."""
    return answers[0] if len(answers) == 1 else {key: sum(each[key] for each in answers) for key in answers[0]}


def question(row: Row) -> Example:
    """What is asked in an example: its prompt, or its chat but for the last answer."""
    return {"messages": row["messages"][:-1]} if "messages" in row else {"prompt": row["prompt"]}


def answered(turns: Turns) -> Turns:
    """A chat up to the assistant's last turn, behind which there is nothing to learn."""
    said = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    return turns[: said[-1] + 1] if said else []

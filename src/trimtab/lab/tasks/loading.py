"""Loading of models and tokenizers, the same for every task with a text."""

from typing import Any

from trimtab.lab.tasks.base import Loaded


def load(kind: str, source: str, revision: str | None, **config: Any) -> Loaded:
    """A model of one of Transformers' `Auto` classes, with its tokenizer.

    Args:
        kind: the class' name.
        source: folder or hub id.
        revision: which version of a hub model.
        config: what is set in the model's configuration.
    """
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(
        source, revision=revision, ignore_mismatched_sizes=True, output_loading_info=True, **config
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return Loaded(model=model, processor=tokenizer, new_modules=sorted({key.rpartition(".")[0] for key in new}))


def numbered(labels: list[str]) -> dict[str, Any]:
    """The configuration of a head with these labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }

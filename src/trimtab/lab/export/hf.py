"""A folder that Transformers loads: weights, tokenizer, chat template, generation config."""

from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.lab.export.finished import Finished
from trimtab.lab.export.merge import EXAMPLES, merge
from trimtab.lab.export.places import new_folder
from trimtab.lab.export.proof import ProofError, compare, observe, tolerance_of
from trimtab.lab.files import write_json


def export(folder: Path, out: Path, console: Console, tolerance: float | None = None, **_: Any) -> list[str]:
    """Write the fine-tuned model as a folder; of an adapter, merged. Returns what there is to say."""
    finished = Finished.read(folder)
    if finished.adapter:
        merge(folder, out, console, tolerance=tolerance)
        return [*_same_words(finished, out), f'AutoModel....from_pretrained("{out}") loads it']
    with new_folder(out) as place:
        loaded = finished.tuned()
        rows = finished.rows(loaded, EXAMPLES)
        first = observe(loaded.model, finished.settings.task, loaded.processor, rows)
        loaded.model.save_pretrained(place)
        loaded.processor.save_pretrained(place)
        again = finished.base(str(place))
        limit = tolerance_of(again.model) if tolerance is None else tolerance
        proof = compare(first, observe(again.model, finished.settings.task, again.processor, rows), limit)
        proof.require(f"the model in {out}")
        said = _same_words(finished, place)
        write_json(place / "export.json", {"model": str(folder), "proof": proof.as_json()})
    return ["read back by Transformers:", str(proof), *said]


def _same_words(finished: Finished, place: Path) -> list[str]:
    """What became of the tokenizer, the chat template and the generation config; raises ProofError if one was lost."""
    from transformers import AutoTokenizer, GenerationConfig

    said = []
    template = getattr(finished.base_processor(), "chat_template", None)
    if template is not None:
        found = AutoTokenizer.from_pretrained(place).chat_template
        if found != template:
            raise ProofError(f"{place}: the chat template is not the one of {finished.source}")
        said.append("the chat template is there")
    if (place / "generation_config.json").exists():
        config = GenerationConfig.from_pretrained(place)
        said.append(f"the generation config is there; generation ends with token {config.eos_token_id}")
    return said

"""Pairs of texts: losses, what is written, a whole run."""

import pytest
import torch

from trimtab.lab.files import read_json, read_lines
from trimtab.lab.predict import predict
from trimtab.lab.tasks.seq2seq import Seq2Seq

from .conftest import phrases


def test_a_run_of_translation(whole_run, t5):
    rows = [{"source": text, "target": text[::-1]} for text in phrases(60)]
    options = "{lora: {r: 2, target_modules: [q, v]}}"
    run = whole_run(t5, "{seq2seq: {max_target_length: 8}}", rows, f"[untrained, {options}]")
    answers = read_lines(run / "lora" / "predictions.jsonl")
    measured = read_json(run / "lora" / "metrics.json")["test"]
    import sacrebleu

    said, true = [row["predicted"] for row in answers], [row["target"] for row in answers]
    assert measured["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(said, [true]).score)
    assert measured["chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(said, [true]).score)
    assert measured["ter"]["value"] == pytest.approx(sacrebleu.corpus_ter(said, [true]).score)
    assert measured["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert isinstance(predict(run / "lora", ["w1 w2"])[0]["predicted"], str)


def test_losses_of_pairs_are_those_of_the_model(t5, tokenizer):
    task = Seq2Seq(measure="perplexity")
    loaded = task.load(str(t5), None, {})
    examples = [{"source": "w1 w2", "target": "w3"}, {"source": "w4", "target": "w5 w6 w7"}]
    for example, row in zip(examples, task.answer(loaded.model, tokenizer, examples, {}, 2), strict=True):
        ids, labels = (torch.tensor([tokenizer(example[key]).input_ids]) for key in ("source", "target"))
        assert row["tokens"] == labels.shape[1]
        assert row["nll"] == pytest.approx(row["tokens"] * loaded.model(ids, labels=labels).loss.item(), rel=1e-4)
    assert (task.select_by, task.higher_is_better) == ("perplexity", False)
    (said,) = task.answer(loaded.model, tokenizer, [task.question("w1")], {}, 1)
    assert isinstance(said["predicted"], str)

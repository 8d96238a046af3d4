"""Context-aware prompt tuning: bounds, what is trained, and which labels count how much."""

import pytest
import torch
from tests.prompts.setting import V, adapted, base, config_of, train
from torch.nn.functional import cross_entropy

import trimtab

peft = pytest.importorskip("peft")

LM = ("llama", "CAUSAL_LM")
TYPES = [1, 2, 3, 4, 5, 6, 7, 8]
EXAMPLES = {"cpt_token_ids": [4, 5, 6, 7, 8, 9, 10, 11], "cpt_mask": [1] * 8, "cpt_tokens_type_mask": TYPES}
BOUNDS = {"opt_projection_epsilon": 0.8, "opt_projection_format_epsilon": 0.4, "num_virtual_tokens": None}
DECAY = {"opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.5}


def examples(**options):
    return adapted(*LM, "cpt", **EXAMPLES | BOUNDS | options)


def inputs():
    ids = torch.randint(12, V, (2, 5), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(5) < 2, -100)}


def test_moves_stay_within_their_bounds_and_labels_stay():
    model = examples()
    encoder = model.prompt_encoder["default"]
    start = model.get_base_model().get_input_embeddings().weight[EXAMPLES["cpt_token_ids"]]
    assert torch.equal(encoder(), start)
    encoder.delta_embedding.weight.data.normal_()
    unit = (32 / 2048) ** 0.5
    lengths = torch.tensor([0.4, 0.8, 0.4, 0, 0.4, 0.8, 0.4, 0]) * unit
    torch.testing.assert_close((encoder() - start).norm(dim=1), lengths, atol=1e-6, rtol=1e-5)
    before = encoder.delta_embedding.weight.clone()
    assert torch.equal(encoder(), encoder())
    assert torch.equal(encoder.delta_embedding.weight, before)


@pytest.mark.parametrize("types", [TYPES, [1, 2, 2, 4, 4, 5, 6, 8]])
@pytest.mark.parametrize("options", [{}, DECAY])
def test_training_is_pefts(types, options):
    options = EXAMPLES | BOUNDS | options | {"cpt_tokens_type_mask": types}
    theirs = peft.get_peft_model(base(*LM), config_of(peft, "cpt", "CAUSAL_LM", **options))
    ours = adapted(*LM, "cpt", **options)
    asked = [None, [[1, 2, 3, 1, 2], [1, 2, 3, 4, 4]], [[4, 0, 8, 8, 12], [8, 8, 8, 8, 8]]]
    for model in (theirs, ours):
        model.losses = [
            model(**inputs(), **({} if a is None else {"input_type_mask": torch.tensor(a)})).loss for a in asked
        ]
        train(model, inputs(), 3)
    torch.testing.assert_close(ours.losses, theirs.losses)
    torch.testing.assert_close(ours.get_prompt(1), theirs.get_prompt(1), atol=1e-6, rtol=0)
    assert ours.prompt_encoder["default"].delta_embedding.weight.any()


def test_earlier_examples_count_less():
    model, given = examples(**DECAY), inputs()
    out = model(**given)
    labels = torch.cat([torch.tensor([EXAMPLES["cpt_token_ids"]] * 2), given["labels"]], dim=1)[:, 1:]
    losses = cross_entropy(out.logits[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=-100)
    weight = torch.tensor([0, 0, 0.25, 0, 0, 0, 0.5, 0, 0, 1, 1, 1])  # of the tokens that follow: 7, 11, the input's
    torch.testing.assert_close(out.loss, (losses * weight).sum() / (2 * (weight > 0).sum()))
    loss, logits = model(**given, return_dict=False)[:2]
    torch.testing.assert_close((loss, logits), (out.loss, out.logits))
    assert "loss" not in model(given["input_ids"])


def test_types_go_on_from_examples_that_end_without_a_label():
    cut = {"cpt_token_ids": [4, 5, 6, 7, 8, 9], "cpt_mask": [1] * 6, "cpt_tokens_type_mask": TYPES[:6]}
    model, given = examples(**cut), inputs()
    alike = torch.tensor([[1, 2, 3, 4, 4]] * 2)
    out = model(**given, input_type_mask=alike)
    labels = torch.cat([torch.tensor([[-100] * 3 + [7] + [-100] * 2] * 2), given["labels"]], dim=1)
    labels[:, 8] = -100
    expected = cross_entropy(out.logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected)
    assert alike.tolist() == [[1, 2, 3, 4, 4]] * 2


def test_a_type_for_every_label():
    with pytest.raises(trimtab.AdapterError, match=r"`input_type_mask` is \(2, 4\), and `labels` \(2, 5\)"):
        examples()(**inputs(), input_type_mask=torch.ones(2, 4))


def test_tensors_are_lists_and_masks_are_filled_in():
    cfg = trimtab.CONFIGS["CPT"](task_type="CAUSAL_LM", cpt_token_ids=torch.tensor([3, 4]))
    known = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[3, 4])
    assert cfg.to_dict() == known.to_dict()
    with pytest.warns(trimtab.TrimtabWarning, match="`cpt_mask` has zeros, and all tokens .* are read all the same"):
        examples(cpt_mask=[1] * 7 + [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "`task_type`='SEQ_CLS' must be 'CAUSAL_LM'"),
        ({"cpt_token_ids": None}, "`cpt_token_ids` must be given"),
        ({"cpt_mask": [1]}, "`cpt_mask` has 1 numbers for 4 `cpt_token_ids`"),
        ({"cpt_tokens_type_mask": [1] * 5}, "`cpt_tokens_type_mask` has 5 numbers for 4"),
        ({"num_virtual_tokens": 3}, "`num_virtual_tokens`=3, but there are 4 `cpt_token_ids`; leave it out"),
        ({"opt_weighted_loss_type": "x"}, "`opt_weighted_loss_type`='x' is unknown; choose 'none' or 'decay'"),
        ({"opt_projection_epsilon": -1.0}, "`opt_projection_epsilon`=-1.0 must be at least 0"),
        ({"cpt_token_ids": [1, 2, 3, 99]}, "`cpt_token_ids` holds 99, and the vocabulary has 60 tokens"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        adapted(*LM, "cpt", **options)

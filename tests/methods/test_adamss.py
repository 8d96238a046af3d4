"""AdaMSS beyond the table: its clusters, its decomposition, and the allocation of subspaces while it trains."""

import peft
import pytest
import torch
from sklearn.cluster import KMeans
from tests import models
from torch import nn

import trimtab
from trimtab.methods.kmeans import kmeans

AdamssConfig = trimtab.CONFIGS["ADAMSS"]
ASA = {"use_asa": True, "init_warmup": 2, "final_warmup": 11, "mask_interval": 3, "asa_target_subspaces": 4}


@pytest.mark.parametrize(("n", "features", "k"), [(9, 2, 1), (20, 4, 3), (60, 16, 5), (400, 100, 8), (12, 3, 20)])
@pytest.mark.parametrize("seed", [0, 123456789])
def test_clusters_are_those_of_scikit_learn(n, features, k, seed):
    x = torch.randn(n, features)
    theirs = KMeans(n_clusters=min(n, k), init="random", n_init=1, max_iter=10, random_state=seed).fit_predict(x)
    ours = kmeans(x, k, seed)
    assert [rows.tolist() for rows in ours] == [[i for i in range(n) if theirs[i] == c] for c in range(len(ours))]


def test_rows_that_are_alike_make_one_cluster():
    x = torch.ones(10, 3)
    x[7] = 2
    assert [rows.tolist() for rows in kmeans(x, 4, 0)] == [[0, 1, 2, 3, 4, 5, 6, 8, 9], [7]]


def test_making_an_adapter_draws_no_random_numbers_of_the_caller():
    model = nn.Sequential(nn.Linear(8, 9))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trimtab.get_peft_model(model, AdamssConfig(r=4, target_modules=["0"]))
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), expected)


def test_a_base_in_half_precision():
    config = AdamssConfig(r=4, num_subspaces=3, target_modules=["lin0", "lin1"])
    model = models.shake(trimtab.get_peft_model(models.base("zoo", dtype=torch.bfloat16), config))
    for layer in model.base_model.layers:
        assert {t.dtype for _, t in layer.parameters_of("default")} == {torch.float32}
    assert models.output(model, models.inputs("zoo")).dtype == torch.bfloat16


def stack(library=trimtab, **options):
    """Four layers of five subspaces each, with ASA, and its factors (A, B) by layer and subspace."""
    torch.manual_seed(0)
    kind = {trimtab: AdamssConfig, peft: peft.AdamssConfig}[library]
    config = kind(r=6, subspace_rank=2, target_modules=["0", "1", "2", "3"], **ASA | options)
    model = library.get_peft_model(nn.Sequential(*[nn.Linear(20, 20) for _ in range(4)]), config)
    models.shake(model)
    named = dict(model.named_parameters())
    paths = [f"base_model.model.{i}.adamss_{{}}.default.{k}" for i in range(4) for k in range(5)]
    return model, [(named[p.format("A")], named[p.format("B")]) for p in paths]


def step_with_gradients(model, factors, step):
    generator = torch.Generator().manual_seed(step)
    for pair in factors:
        for t in pair:
            gradient = torch.randn(t.shape, generator=generator) * torch.rand(1, generator=generator)
            t.grad = gradient if t.requires_grad else None
    model.base_model.update_and_allocate(step)
    return [i for i, pair in enumerate(factors) if all(t.requires_grad for t in pair)]


def test_the_schedule_ends_at_the_target():
    model, factors = stack(asa_schedule_exponent=1.0)
    left = [len(step_with_gradients(model, factors, step)) for step in range(14)]
    assert left == [20, 20, 20, 18, 18, 18, 12, 12, 12, 7, 7, 4, 4, 4]


def test_what_is_stopped_stays_and_the_rest_goes_on():
    model, factors = stack()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for step in range(4):
        left = step_with_gradients(model, factors, step)
    before = [[t.detach().clone() for t in pair] for pair in factors]
    optimizer.step()
    moved = [i for i, pair in enumerate(factors) if not torch.equal(pair[0], before[i][0])]
    assert 4 < len(left) < 20
    assert moved == left


@pytest.mark.parametrize("interval", [1, 3])
def test_importance_is_that_of_peft(interval):
    """PEFT keeps one less than its schedule says; the others are the same."""
    options = {"mask_interval": interval, "init_warmup": 0, "asa_importance_beta": 0.8, "asa_uncertainty_beta": 0.6}
    pairs = [stack(library, **options) for library in (trimtab, peft)]
    for ours, theirs in zip(pairs[0][1], pairs[1][1], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            other.data.copy_(one.data)
    for step in range(1, interval + 1):
        ours, theirs = (step_with_gradients(*pair, step) for pair in pairs)
    assert 4 < len(ours) < 20
    assert len(theirs) == len(ours) - 1
    assert set(theirs) < set(ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "subspace_rank": 0}, "`r`=0 must be at least 1; `subspace_rank`=0 must be at least 1"),
        ({"init_weights": "x"}, "`init_weights`='x' is unknown; choose 'orthogonal' or None"),
        ({"use_dynamic_rank": True, "svd_threshold": 1}, r"`svd_threshold`=1 must be in \[0, 1\)"),
        ({"use_asa": True, "init_warmup": 9, "final_warmup": 9}, r"`init_warmup`=9 must be in \[0, `final_warmup`=9\)"),
        ({"use_asa": True, "mask_interval": 0}, "`mask_interval`=0 must be at least 1"),
        ({"use_asa": True, "asa_schedule_exponent": 0}, "`asa_schedule_exponent`=0 must be above 0"),
        ({"use_asa": True, "asa_importance_beta": 1.0}, r"`asa_importance_beta`=1\.0 must be in \[0, 1\)"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        AdamssConfig(**options)


def test_a_weight_without_values():
    model = nn.Sequential(nn.Linear(8, 9, device="meta"))
    with pytest.raises(trimtab.ConfigError, match=r"0: the weight has no values yet \(meta device\)"):
        trimtab.get_peft_model(model, AdamssConfig(target_modules=["0"]))

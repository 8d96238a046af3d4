"""OSF beyond the table: what its gradients spare, as PEFT's do, and which ranks it refuses."""

import peft
import pytest
import torch
from tests import models

import trimtab

OSFConfig = trimtab.CONFIGS["OSF"]


def osf(library=trimtab, **options):
    torch.manual_seed(0)
    kinds = {trimtab: OSFConfig, peft: peft.OSFConfig}
    return models.shake(library.get_peft_model(models.base("zoo"), kinds[library](**options)))


@pytest.mark.parametrize("rank", [None, 0.93])  # by the definition, and by two products
def test_gradients_are_those_of_peft(rank):
    found = []
    for library in (trimtab, peft):
        model = osf(library, target_modules=["lin0"], effective_rank=rank)
        models.output(model, models.inputs("zoo")).pow(2).sum().backward()
        found.append({k.rpartition(".")[2]: p.grad for k, p in model.named_parameters() if "osf_svd" in k})
    assert found[0].keys() == found[1].keys() == {"U_low", "S_low", "V_low"}
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], rtol=1e-4, atol=1e-6)


def test_training_spares_what_the_weight_does_best():
    torch.manual_seed(0)
    model = trimtab.get_peft_model(models.base("zoo"), OSFConfig(target_modules=["lin0"], effective_rank=5))
    (layer,) = model.base_model.layers
    u, s, v = torch.linalg.svd(layer.base_layer.weight)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(5):
        models.output(model, models.inputs("zoo")).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    w, _ = layer.effective()
    assert (w - layer.base_layer.weight).abs().max() > 1e-2
    torch.testing.assert_close(u[:, :5].T @ w, s[:5, None] * v[:5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w @ v[:5].T, u[:, :5] * s[:5], rtol=1e-4, atol=1e-5)


def test_a_base_in_half_precision():
    config = OSFConfig(target_modules=["lin0", "lin1"])
    model = trimtab.get_peft_model(models.base("zoo", dtype=torch.bfloat16), config)
    for layer in model.base_model.layers:
        assert {t.dtype for _, t in layer.parameters_of("default")} == {torch.float32}
        assert layer.get_delta_weight("default").abs().max() < 1e-12  # however W is rounded
    assert models.output(models.shake(model), models.inputs("zoo")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effective_rank": 0}, "`effective_rank`=0 must be a whole number of at least 1, or a share in"),
        ({"effective_rank": 2.5}, r"`effective_rank`=2\.5 must be a whole number"),
        ({"rank_pattern": {"a": -1, "b": 2}}, r"OSFConfig: `rank_pattern\['a'\]`=-1 must be a whole number"),
        ({"target_svd_config": {"lin0.weight": 8}}, "`target_svd_config`=.* is not available"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(trimtab.ConfigError, match=message):
        OSFConfig(**options)


@pytest.mark.parametrize(("rank", "spared"), [(12, 12), (99, 12), (1.0, 12), (0.01, 0)])
def test_a_rank_that_leaves_nothing(rank, spared):
    message = f"lin0: `effective_rank`={rank} spares {spared} of the 12 singular directions"
    with pytest.raises(trimtab.ConfigError, match=message):
        osf(target_modules=["lin0"], effective_rank=rank)

"""What an adapter derives from its base, where another machine's linear algebra makes something else of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import models

import trimtab
from trimtab import CONFIGS, PeftModel, get_peft_model
from trimtab import AdapterFileError as FileError
from trimtab.hotswap import hotswap_adapter
from trimtab.inits.lora_ga import preprocess_loraga
from trimtab.methods import adamss, frod, psoft

IDS = models.inputs("zoo")["ids"]
FLIPPED = torch.tensor([1.0, -1.0, -1.0])
TARGETS = ["lin0", "lin1"]


def mirrored_svd(w, cfg, svd=psoft.principal):
    u, s, v = svd(w, cfg)
    return u * FLIPPED, s, FLIPPED.unsqueeze(1) * v


def turned_svd(w, cfg, svd=psoft.principal):
    """Two directions mixed, as those of equal singular values may be."""
    u, s, v = svd(w, cfg)
    half = 0.5**0.5
    mix = torch.tensor([[half, half, 0], [half, -half, 0], [0, 0, 1]])
    return u @ mix, s, mix @ v


def mirrored_basis(weights, alpha, basis=frod.basis):
    v = basis(weights, alpha)
    return v * (1 - 2.0 * (torch.arange(v.shape[1]) % 2))


def other_clusters(u, k, seed, kmeans=adamss.kmeans):
    """The same sizes, with two outputs exchanged."""
    first, *others, last = kmeans(u, k, seed)
    return [torch.cat([first[:-1], last[:1]]), *others, torch.cat([first[-1:], last[1:]])]


CASES = {
    "PSOFT": (CONFIGS["PSOFT"], {"r": 3}, psoft, "principal", mirrored_svd),
    "PSOFT, both parts": (CONFIGS["PSOFT"], {"r": 3, "ab_svd_init": "pissa_init"}, psoft, "principal", mirrored_svd),
    "FRoD": (CONFIGS["FROD"], {"save_projection": False, "sparse_rate": 0.2}, frod, "basis", mirrored_basis),
    "PSOFT, turned": (CONFIGS["PSOFT"], {"r": 3}, psoft, "principal", turned_svd),
    "AdaMSS": (CONFIGS["ADAMSS"], {"r": 6, "num_subspaces": 3}, adamss, "kmeans", other_clusters),
}
REPAIRED = list(CASES)[:3]


def saved(case, folder):
    """The output of a trained adapter, after it has been written into a folder."""
    config, options, *_ = CASES[case]
    model = get_peft_model(models.base("zoo"), config(target_modules=TARGETS, **options))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) / 3)
    model.save_pretrained(folder)
    return model.eval()(IDS)


def elsewhere(case, monkeypatch):
    """From now on, what the method of a case derives comes out as on another machine."""
    *_, module, name, otherwise = CASES[case]
    monkeypatch.setattr(module, name, otherwise)


@pytest.mark.parametrize("case", REPAIRED)
def test_mirrored_vectors_are_turned_back(case, tmp_path, monkeypatch):
    wanted = saved(case, tmp_path / "one")
    elsewhere(case, monkeypatch)
    model = PeftModel.from_pretrained(models.base("zoo"), tmp_path / "one")
    torch.testing.assert_close(model(IDS), wanted)
    model.save_pretrained(tmp_path / "two")  # notes the vectors as they are now
    monkeypatch.undo()
    torch.testing.assert_close(PeftModel.from_pretrained(models.base("zoo"), tmp_path / "two")(IDS), wanted)


@pytest.mark.parametrize("case", REPAIRED)
def test_a_file_without_the_note_is_taken_as_it_is(case, tmp_path, monkeypatch):
    wanted = saved(case, tmp_path)
    save_file(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    torch.testing.assert_close(PeftModel.from_pretrained(models.base("zoo"), tmp_path)(IDS), wanted)
    elsewhere(case, monkeypatch)  # and here, nobody can tell
    assert not torch.allclose(PeftModel.from_pretrained(models.base("zoo"), tmp_path)(IDS), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("PSOFT, turned", r"lin0.psoft_A: 2 of 3 vectors are others\n.*lin0.psoft_B: 2 of 3"),
        ("AdaMSS", r"lin0.adamss_place: other choices\n.*lin1.adamss_place: other choices"),
    ],
)
def test_what_comes_out_as_something_else_is_refused(case, message, tmp_path, monkeypatch):
    saved(case, tmp_path)
    elsewhere(case, monkeypatch)
    base = models.base("zoo")
    with pytest.raises(FileError, match=message):
        PeftModel.from_pretrained(base, tmp_path)
    assert type(base.lin0) is torch.nn.Linear
    with pytest.warns(trimtab.TrimtabWarning, match=message):
        PeftModel.from_pretrained(base, tmp_path, strict=False)


def test_swapping_in_place_turns_too(tmp_path, monkeypatch):
    wanted = saved("PSOFT", tmp_path)
    elsewhere("PSOFT", monkeypatch)
    model = get_peft_model(models.base("zoo"), CONFIGS["PSOFT"](target_modules=TARGETS, r=3)).eval()
    hotswap_adapter(model, tmp_path, "default")
    torch.testing.assert_close(model(IDS), wanted)
    hotswap_adapter(model, tmp_path, "default")  # nothing is left to turn
    torch.testing.assert_close(model(IDS), wanted)


def test_the_rest_that_lora_ga_leaves_is_the_same(monkeypatch):
    svd, rests = torch.linalg.svd, []

    def mirrored(w, **options):
        u, s, v = svd(w, **options)
        signs = torch.tensor([-1.0] + [1.0] * (len(s) - 1))
        return u * signs, s, signs.unsqueeze(1) * v

    for found in (svd, mirrored):
        monkeypatch.setattr(torch.linalg, "svd", found)
        base = models.base("zoo")
        config = trimtab.LoraConfig(r=2, target_modules=["lin0"], init_lora_weights="lora_ga")
        preprocess_loraga(base, config, lambda base=base: base(IDS).square().sum().backward())
        rests.append(get_peft_model(base, config).unload().lin0.weight)
    torch.testing.assert_close(*rests)

"""DoRA: norms that are kept while nothing changes."""

import torch
from tests import models

from trimtab import LoraConfig, get_peft_model
from trimtab.compat.helpers import DoraCaching
from trimtab.methods import dora


@torch.no_grad()
def test_norms_are_kept_until_something_changes(monkeypatch):
    model = models.shake(
        get_peft_model(models.base("llama"), LoraConfig(use_dora=True, target_modules=["q_proj"]))
    ).eval()
    batch, counts = models.inputs("llama", 2), []
    monkeypatch.setattr(dora, "row_norm", lambda w, norm=dora.row_norm: counts.append(1) or norm(w))

    def computed(change=lambda: None):
        counts.clear()
        change()
        y = model(**batch).logits
        return len(counts), y

    (each, y), layer = computed(), model.base_model.model.model.layers[0].self_attn.q_proj
    assert each == 2
    with DoraCaching():
        assert computed()[0] == 2
        again, kept = computed()
        assert again == 0
        assert torch.equal(kept, y)
        assert computed(lambda: layer.lora_B["default"].weight.mul_(2))[0] == 1
        assert computed(lambda: layer.set_scale("default", 0.5))[0] == 1
        assert computed(lambda: layer.base_layer.weight.mul_(2))[0] == 1
        with torch.enable_grad():
            assert computed(model.train)[0] == 2
        model.eval()
    assert computed()[0] == 2
    DoraCaching()(enabled=True)
    computed()
    assert computed()[0] == 0
    DoraCaching()(enabled=False)
    assert computed()[0] == 2

"""X-LoRA: a mixture of two LoRA adapters, which are saved first."""

import tempfile
from pathlib import Path

from tests import models
from tests.row import ORACLE, Row

import trimtab

FOLDER = Path(tempfile.mkdtemp(prefix="trimtab-xlora-"))
for name in ("a", "b"):
    config = trimtab.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    made = trimtab.get_peft_model(models.base("llama"), config)
    models.shake(made, ord(name)).save_pretrained(FOLDER / name)

OPTIONS = {"hidden_size": 16, "adapters": {name: str(FOLDER / name) for name in ("a", "b")}}
WITHOUT = dict.fromkeys(ORACLE, "PEFT cannot save it, or call adapters 'a' and 'b'; see methods/test_xlora.py")
WITHOUT |= {"no effect at first": "the adapters that it mixes have an effect"}
WITHOUT |= {"compile(fullgraph)": "its layers alone have nothing to train"}
ROWS = [Row("X-LoRA", "XLORA", OPTIONS, "llama", without=WITHOUT)]

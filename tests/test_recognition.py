"""Other libraries take our models for `peft` models, unmodified, whatever is or is not installed and imported."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
SRC = Path(__file__).resolve().parents[1] / "src"

ABSENT = """
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder

def find_spec(name, path=None, target=None, found=PathFinder.find_spec):
    return None if name.partition(".")[0] == "peft" else found(name, path, target)

def find_distributions(*context, found=MetadataPathFinder.find_distributions):
    return (d for d in found(*context) if d.name != "peft")

PathFinder.find_spec = staticmethod(find_spec)
MetadataPathFinder.find_distributions = staticmethod(find_distributions)
"""
MODEL = """
import torch, trimtab as peft
from transformers import LlamaConfig, LlamaForCausalLM

def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        vocab_size=32, name_or_path="base",
    ))

def adapted():
    return peft.get_peft_model(base(), peft.LoraConfig(r=4, task_type="CAUSAL_LM"))

x = torch.arange(12).view(2, 6)
"""
TRAINER = """
def trainer(model, folder, steps, **options):
    from transformers import Trainer, TrainingArguments
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(160).view(16, 10) % 32]
    args = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=2, save_steps=2, eval_steps=2, eval_strategy="steps",
        learning_rate=0.01, report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", **options,
    )
    return Trainer(model, args, train_dataset=rows, eval_dataset=rows[:4])

model = adapted()
trainer(model, "whole", 4, load_best_model_at_end=True).train()
files = sorted(os.listdir("whole/checkpoint-4"))
assert "adapter_model.safetensors" in files and "adapter_config.json" in files, files
assert not any(f.startswith(("model.", "pytorch_model")) for f in files), files
again = adapted()
trainer(again, "whole", 4).train(resume_from_checkpoint="whole/checkpoint-2")
loaded = peft.PeftModel.from_pretrained(base(), "whole/checkpoint-4")
assert torch.equal(loaded(x).logits, again.eval()(x).logits), "2N steps are not N + resume + N"
assert torch.equal(loaded(x).logits, model.eval()(x).logits), "the best checkpoint is the last one, and was reloaded"
from transformers.trainer_utils import _is_peft_model, unwrap_peft_model
assert _is_peft_model(model) and unwrap_peft_model(model) is model.get_base_model() and not _is_peft_model(base())
"""


def run(code: str, folder: Path, *preambles: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    text = "\n".join(["import os", *map(textwrap.dedent, (*preambles, code))])
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


INSTALLED = """
import peft as theirs
from transformers import trainer_utils
assert not isinstance(model, theirs.PeftModel), "nothing of peft itself is changed"
original = theirs.get_peft_model(base(), theirs.LoraConfig(task_type="CAUSAL_LM"))
assert isinstance(original, theirs.PeftModel) and trainer_utils._is_peft_model(original)
try:
    peft.compat.stand_in()
except peft.TrimtabError as error:
    assert "before" in str(error)
else:
    raise AssertionError("it stood in for a peft that is loaded")
"""
SITUATIONS = {
    "absent": (ABSENT, MODEL),
    "absent, and Trainer imported before the model": (ABSENT, "from transformers import Trainer", MODEL),
    "installed, and imported by Trainer before the model": ("from transformers import Trainer", MODEL),
    "installed, and imported after the model": (MODEL,),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_trainer_saves_resumes_and_reloads_our_models(situation, tmp_path):
    installed = situation.startswith("installed")
    if installed:
        pytest.importorskip("peft")
    proof = f"import sys; assert ('peft' in sys.modules) is {installed}, 'the situation is not the one meant'\n"
    run(TRAINER + proof + (INSTALLED if installed else ""), tmp_path, *SITUATIONS[situation])


STAND_IN = """
import trimtab
trimtab.compat.stand_in()
"""


@pytest.mark.parametrize("before", ["", ABSENT + "import transformers.trainer"], ids=["installed", "absent"])
def test_standing_in_transformers_own_adapters_work(before, tmp_path):
    code = """
    import importlib.metadata, importlib.util
    import peft as theirs
    assert theirs.LoraConfig is trimtab.LoraConfig and theirs.__version__ == "0.21.2"
    assert importlib.metadata.version("peft") == "0.21.2" and importlib.util.find_spec("peft")
    from accelerate.utils import is_peft_available, is_peft_model
    assert is_peft_available() and is_peft_model(adapted())

    model = base()
    plain = model(x).logits
    model.add_adapter(theirs.LoraConfig(init_lora_weights=False), "mine")
    changed = model(x).logits
    assert model.active_adapters() == ["mine"] and not torch.equal(plain, changed)
    model.disable_adapters()
    assert torch.equal(model(x).logits, plain)
    model.enable_adapters()
    assert torch.equal(model(x).logits, changed)
    model.save_pretrained("adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir("adapter"))
    assert len(model.get_adapter_state_dict("mine")) == 8

    model.add_adapter(theirs.LoraConfig(init_lora_weights=False), "other")
    assert not torch.equal(model(x).logits, changed)
    model.set_adapter("mine")
    assert torch.equal(model(x).logits, changed)
    model.delete_adapter("mine")
    assert list(model.peft_config) == ["other"]

    fresh = base()
    fresh.load_adapter("adapter")
    assert torch.equal(fresh(x).logits, changed)

    base().save_pretrained("base")
    whole = LlamaForCausalLM.from_pretrained("adapter")
    assert torch.equal(whole(x).logits, changed)
    assert torch.equal(theirs.PeftModel.from_pretrained(base(), "adapter")(x).logits, changed)
    """
    run(code, tmp_path, before, STAND_IN, MODEL)


IMPORTED = {
    "peft": "PeftModel PeftMixedModel PeftConfig PeftType LoraConfig LoKrConfig PrefixTuningConfig "
    "PromptLearningConfig AutoPeftModelForCausalLM get_peft_model get_peft_model_state_dict set_peft_model_state_dict "
    "inject_adapter_in_model prepare_model_for_kbit_training",
    "peft.functional": "delete_adapter",
    "peft.helpers": "disable_input_dtype_casting",
    "peft.peft_model": "PeftModel PeftModelForCausalLM get_layer_status",
    "peft.mapping": "get_peft_model PEFT_TYPE_TO_CONFIG_MAPPING",
    "peft.config": "PeftConfig",
    "peft.import_utils": "is_bnb_available",
    "peft.tuners": "LoraModel PromptEmbedding",
    "peft.tuners.loha.layer": "LoHaLayer",
    "peft.tuners.lokr.layer": "LoKrLayer factorization",
    "peft.tuners.lora": "LoraLayer LoraModel Linear",
    "peft.tuners.lora.layer": "LoraLayer Embedding Conv2d",
    "peft.tuners.tuners_utils": "BaseTunerLayer BaseTuner",
    "peft.utils": "ModulesToSaveWrapper _get_submodules get_peft_model_state_dict",
    "peft.utils.other": "fsdp_auto_wrap_policy",
    "peft.utils.save_and_load": "_maybe_shard_state_dict_for_tp",
    "peft.utils.transformers_weight_conversion": "build_peft_weight_mapping",
}
"""What Transformers 5.17, Accelerate 1.15, Diffusers 0.42, TRL 1.16, Sentence Transformers 6.2 import, and more."""


def test_standing_in_covers_what_libraries_import_and_only_warns(tmp_path):
    code = """
    import importlib
    import warnings

    for module, names in NAMES.items():
        for name in names.split():
            getattr(importlib.import_module(module), name)
    import peft as theirs, peft.tuners.lora.layer, trimtab.tuners.lora
    assert theirs.tuners.lora.LoraLayer is trimtab.tuners.lora.LoraLayer
    assert importlib.util.find_spec("peft.tuners.lora") and not importlib.util.find_spec("peft.nothing")

    model = theirs.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), theirs.LoraConfig(target_modules=["0"]))
    state = theirs.get_peft_model_state_dict(model)
    state.pop(next(iter(state)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        theirs.set_peft_model_state_dict(model, state)
    assert any("missing" in str(w.message) for w in said), "strict is off, so this is no error"
    """
    run(code, tmp_path, STAND_IN, f"import torch\nNAMES = {IMPORTED!r}")

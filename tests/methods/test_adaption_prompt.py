"""LLaMA-Adapter: the equation, the architectures it knows, which layers it stands on, what it stands beside."""

import peft
import pytest
import torch
from tests import models
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import trimtab
from trimtab.methods.adaption_prompt import TARGETS, AdaptionPromptConfig

SMALL = {"adapter_len": 3, "adapter_layers": 2}
BATCH = models.inputs("llama", 2)


def adapted(model="llama", **options):
    made = trimtab.get_peft_model(models.base(model), AdaptionPromptConfig(**SMALL | options)).eval()
    return models.shake(made, size=1.0)


@torch.no_grad()
def test_heads_read_the_prompt_beside_the_input():
    layer = adapted().base_model.model.model.layers[1].self_attn
    base, prompt, gate = layer.base_layer, layer.adaption_prompt["default"], layer.adaption_gate["default"]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    angles = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3))
    place = angles.cos(), angles.sin()
    q, k, v = (p(x).view(2, 5, -1, 8).transpose(1, 2) for p in (base.q_proj, base.k_proj, base.v_proj))
    q, k = apply_rotary_pos_emb(q, k, *place)
    later = torch.full((5, 5), -torch.inf).triu(1)
    read = torch.softmax(q @ k.transpose(2, 3) / 8**0.5 + later, dim=-1) @ v
    k, v = (p(prompt).view(1, 3, -1, 8).transpose(1, 2) for p in (base.k_proj, base.v_proj))
    read = read + gate * torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=-1) @ v
    y, _ = layer(hidden_states=x, position_embeddings=place, attention_mask=None)
    torch.testing.assert_close(y, base.o_proj(read.transpose(1, 2).flatten(2)))
    assert type(base.config).__name__ == "LlamaConfig"  # as it was before the call


@pytest.mark.parametrize("model", ["gpt2", "opt", "qwen2", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_architectures_and_implementations_of_attention(model, implementation):
    named = {} if model in TARGETS or f"{model}_text" in TARGETS else {"target_modules": "self_attn"}
    plain = models.base(model)
    plain.set_attn_implementation(implementation)
    before = plain(**BATCH).logits
    made = trimtab.get_peft_model(plain, AdaptionPromptConfig(**SMALL, **named)).eval()
    assert torch.equal(made(**BATCH).logits, before)
    after = models.shake(made, size=1.0)(**BATCH)
    after.loss.backward()
    assert not torch.allclose(after.logits, before, atol=1e-3)
    assert all(p.grad.any() for p in made.parameters() if p.requires_grad)
    other = "eager" if implementation == "sdpa" else "sdpa"
    plain.set_attn_implementation(other)
    torch.testing.assert_close(made(**BATCH).logits, after.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_generation_reads_it_at_each_step(model):
    made, ids = adapted(model), BATCH["input_ids"]
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = made.generate(ids, use_cache=False, **greedy)
    assert made.generate(ids, **greedy).tolist() == expected.tolist()
    with made.disable_adapter():
        assert made.generate(ids, **greedy).tolist() != expected.tolist()


def test_the_topmost_layers_have_one():
    made = adapted(adapter_layers=1)
    assert [layer.path for layer in made.base_model.layers] == ["model.layers.1.self_attn"]
    made.add_adapter("both", AdaptionPromptConfig(**SMALL))
    assert sum("both" in layer.adapters for layer in made.base_model.layers) == 2


@torch.no_grad()
def test_other_adapters_inside_and_around_the_attention():
    made = adapted()
    alone = made(**BATCH).logits
    lora = trimtab.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    made = trimtab.get_peft_model(models.base("llama"), AdaptionPromptConfig(**SMALL), mixed=True).eval()
    models.shake(made, size=1.0)
    made.add_adapter("lora", lora)
    torch.testing.assert_close(made(**BATCH).logits, alone)
    made.set_adapter(["default", "lora"])
    assert not torch.allclose(made(**BATCH).logits, alone, atol=1e-3)
    with pytest.raises(trimtab.TargetError, match="an adapter already that acts elsewhere in the module"):
        made.add_adapter("reft", trimtab.ReftConfig(target_modules=["self_attn"]))


def test_the_file_format_is_pefts():
    said = AdaptionPromptConfig(**SMALL, target_modules="self_attn", task_type="CAUSAL_LM")
    known = peft.AdaptionPromptConfig(**SMALL, target_modules="self_attn", task_type="CAUSAL_LM")
    ours, theirs = ({k: v for k, v in c.to_dict().items() if k != "peft_version"} for c in (said, known))
    assert ours == theirs
    assert said.is_adaption_prompt
    assert AdaptionPromptConfig.from_dict(known.to_dict()).target_modules == ["self_attn"]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("llama", {"adapter_len": None}, "`adapter_len`=None must be given, and be at least 1"),
        ("llama", {"adapter_layers": 0}, "`adapter_layers`=0 must be given, and be at least 1"),
        ("llama", {"adapter_layers": 3}, r"`adapter_layers`=3, and 2 modules are called \['self_attn'\]"),
        ("llama", {"target_modules": ["a", "b"]}, "`target_modules`=.* must be one name"),
        ("llama", {"target_modules": "mlp"}, "this LlamaMLP does not tell how it makes keys and values"),
        ("bert", {"target_modules": "self"}, "this BertSelfAttention does not tell how it makes keys and values"),
        ("bert", {}, "ADAPTION_PROMPT has no default for architecture 'bert'"),
        ("m2m100", {"target_modules": "nothing"}, "Target modules .* not found"),
    ],
)
def test_what_cannot_be(model, options, message):
    with pytest.raises(trimtab.TrimtabError, match=message):
        trimtab.get_peft_model(models.base(model), AdaptionPromptConfig(**SMALL | options))

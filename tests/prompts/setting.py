"""What the tests of prompt methods share: tiny models of every kind, the methods, and batches.

`METHODS` is the table: a row a method (or one of its options), which gives it the tests of all files here.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

import trimtab

tf.logging.set_verbosity_error()

N, V = 4, 60  # virtual tokens, vocabulary
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1}
ENCODER = SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}
PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": V, "max_position_embeddings": 64, "dropout": 0.0,
    "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=16),
    "gemma": lambda: tf.GemmaConfig(**GROUPED | {"num_key_value_heads": 1}, head_dim=16),
    "gemma3": lambda: tf.Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=16),
    "gpt2": lambda: tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=V, pad_token_id=0, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "opt": lambda: tf.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=V,
        max_position_embeddings=64, pad_token_id=0, dropout=0.0,
    ),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=V, pad_token_id=0),
    "bert": lambda: tf.BertConfig(**ENCODER),
    "roberta": lambda: tf.RobertaConfig(**ENCODER, pad_token_id=0, type_vocab_size=1),
    "electra": lambda: tf.ElectraConfig(**ENCODER, embedding_size=16),
    "distilbert": lambda: tf.DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=V),
    "modernbert": lambda: tf.ModernBertConfig(**SMALL, pad_token_id=0),
    "t5": lambda: tf.T5Config(
        d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, vocab_size=V, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    ),
    "bart": lambda: tf.BartConfig(**PAIR),
    "m2m100": lambda: tf.M2M100Config(**PAIR, attention_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    "falcon": lambda: tf.FalconConfig(**SMALL, pad_token_id=0, num_kv_heads=2, new_decoder_architecture=True),
    "starcoder": lambda: tf.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=V, pad_token_id=0),
    "mt5": lambda: tf.MT5Config(
        d_model=32, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, d_kv=6, vocab_size=V, pad_token_id=0,
        decoder_start_token_id=0,
    ),
    "whisper": lambda: tf.WhisperConfig(
        **PAIR, num_mel_bins=16, max_source_positions=20, suppress_tokens=None, begin_suppress_tokens=None
    ),
    "deepseek": lambda: tf.DeepseekV3Config(
        **GROUPED, moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8,
        qk_nope_head_dim=4, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
    ),
    "qwen3-next": lambda: tf.Qwen3NextConfig(
        **GROUPED, num_experts=2, moe_intermediate_size=16, num_experts_per_tok=1, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    ),
    "mamba": lambda: tf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=V),
}  # fmt: skip
AUTO = {
    "CAUSAL_LM": tf.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": tf.AutoModelForSeq2SeqLM,
    "SEQ_CLS": tf.AutoModelForSequenceClassification,
    "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "QUESTION_ANS": tf.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": tf.AutoModel,
}


@dataclass
class Row:
    """A prompt method: its configuration, the arguments of a call of two rows, and for which tasks it is."""

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, torch.Tensor] = field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(AUTO)
    peft: tuple[str, ...] = tuple(AUTO)  # the tasks that it does in PEFT


# PEFT hands `task_ids` on for these only, and gives a decoder a prompt too, but not when it generates.
SHARED = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS")
EXAMPLES = {"cpt_token_ids": [5, 9, 7, 8], "cpt_mask": [1] * N, "cpt_tokens_type_mask": [1, 2, 3, 4]}
TASKS = {"num_tasks": 3, "num_ranks": 2}
METHODS = {
    "prompt": Row("PromptTuningConfig"),
    "prefix": Row("PrefixTuningConfig"),
    "prefix-projected": Row("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 24}),
    "cartridge": Row("CartridgeConfig", {"num_frozen_tokens": 2}),
    "p-mlp": Row("PromptEncoderConfig", {"encoder_hidden_size": 24}),
    "p-lstm": Row("PromptEncoderConfig", {"encoder_hidden_size": 8, "encoder_reparameterization_type": "LSTM"}),
    "multitask": Row("MultitaskPromptTuningConfig", TASKS, {"task_ids": torch.tensor([2, 0])}, peft=SHARED),
    "cpt": Row("CPTConfig", EXAMPLES, tasks=("CAUSAL_LM",), peft=("CAUSAL_LM",)),
}
EMBEDS = ["prompt", "p-mlp", "p-lstm", "multitask", "cpt"]


def able(task, among=METHODS):
    """The methods that are for a task."""
    return [m for m in among if task in METHODS[m].tasks]


def base(arch, task, **changes):
    config = CONFIGS[arch]()
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        config.num_labels = 3
    torch.manual_seed(0)
    return AUTO[task].from_config(config, **changes).eval()


def config_of(library, method, task, **changes):
    row = METHODS[method]
    known = trimtab.CONFIGS if library is trimtab else library.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    chosen = next(c for c in known.values() if c.__name__ == row.config)
    return chosen(**{"task_type": task, "num_virtual_tokens": N} | row.options | changes)


def adapted(arch, task, method, seed=3, **changes):
    model = base(arch, task)
    torch.manual_seed(seed)
    return trimtab.get_peft_model(model, config_of(trimtab, method, task, **changes)).eval()


def batch(arch, task, labels=True, method="prompt"):
    """Two rows of 7 tokens, the second padded by two: on the right, or for a decoder's classifier on the left."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (2, 7), generator=g)
    mask = torch.ones_like(ids)
    padding = slice(0, 2) if arch == "llama" and task == "SEQ_CLS" else slice(5, 7)
    ids[1, padding], mask[1, padding] = CONFIGS[arch]().pad_token_id, 0
    made = {"input_ids": ids, "attention_mask": mask} | METHODS[method].call
    if task in ("SEQ_CLS", "TOKEN_CLS") and arch == "bert":
        made["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 3] * 2)
    if task == "QUESTION_ANS" and labels:
        return made | {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 9])}
    targets = {
        "CAUSAL_LM": ids.masked_fill(mask == 0, -100),
        "SEQ_2_SEQ_LM": torch.randint(3, V, (2, 5), generator=g),
        "SEQ_CLS": torch.tensor([0, 2]),
        "TOKEN_CLS": torch.randint(0, 3, (2, 7), generator=g).masked_fill(mask == 0, -100),
    }
    return made | ({"labels": targets[task]} if task in targets and (labels or task == "SEQ_2_SEQ_LM") else {})


def result(out, length=None):
    key = next(k for k in ("logits", "start_logits", "last_hidden_state") if k in out)
    return out[key] if length is None or out[key].ndim < 2 else out[key][:, -length:]


def cut(inputs, rows, tokens):
    """These rows and tokens of a batch."""
    return {k: v[rows] if v.dim() == 1 else v[rows, tokens] for k, v in inputs.items()}


def train(model, inputs, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return model


def moved(model, by=1.0):
    """A model whose prompt has moved, as training would; a start from small numbers hardly shows."""
    g = torch.Generator().manual_seed(4)
    for p in model.prompt_encoder.parameters():
        if p.requires_grad:
            p.data.add_(by * torch.randn(p.shape, generator=g))
    return model

"""Small models for tests: one with every kind of layer, and every architecture of the real-model tests, tiny."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Intel's library promises the same bits for the same product only so: otherwise they depend on how memory is aligned.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")


class Experts(nn.Module):
    """Two experts as one stacked parameter (experts, out, in); each half of the features takes its own."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, out, inp) / inp**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,...i->...o", self.up, x)


class Zoo(nn.Module):
    """Every kind of layer that carries an adapter, in one chain: ids (rows, 6) -> (rows, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 12)
        self.lin0 = nn.Linear(12, 20)
        self.c1 = Conv1D(8, 20)
        self.lin1 = nn.Linear(8, 12, bias=False)
        self.mha = nn.MultiheadAttention(12, 3, batch_first=True)
        self.experts = Experts(12, 12)
        self.conv1 = nn.Conv1d(12, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 8, 3, padding=1)
        self.gconv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.conv3 = nn.Conv3d(1, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        for p in self.parameters():  # so that every layer shows in the output
            nn.init.normal_(p, 0.0, 1.2 / max(1, p[0].numel()) ** 0.5)
        self.norm.bias.data.mul_(0.3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.c1(torch.tanh(self.lin0(self.emb(ids))))
        h = self.lin1(torch.tanh(h))
        h = self.experts(h + self.mha(h, h, h)[0])
        c = self.conv2(self.conv1(h.transpose(1, 2)).unsqueeze(1))
        c = self.conv3(self.gconv(c).unsqueeze(1)).mean((2, 3, 4))
        return self.head(self.norm(c))


class Wide(nn.Module):
    """Layers that a frozen base may store in fewer bits, wide enough for every storage: ids (rows, 6) -> (rows, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 64)
        self.lin0 = nn.Linear(64, 128)
        self.c1 = Conv1D(64, 128)
        self.lin1 = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 3)
        for p in self.parameters():
            nn.init.normal_(p, 0.0, 1.2 / max(1, p[0].numel()) ** 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.c1(torch.tanh(self.lin0(self.emb(ids)))))
        return self.head(torch.tanh(self.lin1(h))).mean(1)


BARE = {"zoo": Zoo, "wide": Wide}
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
_DECODER = _SMALL | {
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = _DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_ENCODER = _SMALL | {"intermediate_size": 24}
_SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}
_WHISPER = {k: v for k, v in _SEQ2SEQ.items() if k != "max_position_embeddings"} | {
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
}
_T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

# name -> (configuration class, model class, options, task type)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER, "CAUSAL_LM"),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", _DECODER | {"tie_word_embeddings": True}, "CAUSAL_LM"),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 64,
            "n_embd": 16,
            "n_head": 2,
            "n_layer": 2,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
        "CAUSAL_LM",
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", _SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "CAUSAL_LM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER, "CAUSAL_LM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER | {"head_dim": 8}, "CAUSAL_LM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA, "CAUSAL_LM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA, "CAUSAL_LM"),
    "bert": ("BertConfig", "BertForSequenceClassification", _ENCODER | {"num_labels": 3}, "SEQ_CLS"),
    "roberta": (
        "RobertaConfig",
        "RobertaForTokenClassification",
        _ENCODER | {"num_labels": 3, "pad_token_id": 1},
        "TOKEN_CLS",
    ),
    "bert-qa": ("BertConfig", "BertForQuestionAnswering", _ENCODER, "QUESTION_ANS"),
    "bert-features": ("BertConfig", "BertModel", _ENCODER, "FEATURE_EXTRACTION"),
    "llama-cls": ("LlamaConfig", "LlamaForSequenceClassification", _DECODER | {"num_labels": 3}, "SEQ_CLS"),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5, "SEQ_2_SEQ_LM"),
    "bart": ("BartConfig", "BartForConditionalGeneration", _SEQ2SEQ, "SEQ_2_SEQ_LM"),
    "m2m100": ("M2M100Config", "M2M100ForConditionalGeneration", _SEQ2SEQ, "SEQ_2_SEQ_LM"),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", _WHISPER, None),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 24,
            "image_size": 8,
            "patch_size": 4,
            "num_labels": 3,
        },
        None,
    ),
}


def base(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model in evaluation mode; the same name and seed give the same weights."""
    torch.manual_seed(seed)
    if name in BARE:
        return BARE[name]().eval().to(dtype)
    import transformers

    config, model, options, _ = ARCHITECTURES[name]
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    for p in made.parameters():  # the usual 0.02 would make a model whose output hardly depends on its input
        if p.dim() > 1:
            p.data.mul_(5)
    return made.eval().to(dtype)


def inputs(name: str, rows: int = 4) -> dict[str, Tensor]:
    """A batch for a model, with labels if it computes a loss."""
    g = torch.Generator().manual_seed(1)
    if name in BARE:
        return {"ids": torch.randint(0, 30, (rows, 6), generator=g)}
    _, _model, _, task = ARCHITECTURES[name]
    ids = torch.randint(3, 64, (rows, 7), generator=g)
    label = torch.randint(0, 3, (rows,), generator=g)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=g), "labels": label}
    if name == "whisper":
        return {"input_features": torch.randn(rows, 8, 40, generator=g), "labels": ids}
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == "SEQ_CLS":
        return batch | {"labels": label}
    if task == "QUESTION_ANS":
        return batch | {"start_positions": label, "end_positions": label + 2}
    if task == "FEATURE_EXTRACTION":
        return batch
    return batch | {"labels": ids % 3 if task == "TOKEN_CLS" else ids}


def output(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Tensor:
    """What a model answers, as one tensor with a row for each row of the batch."""
    if "ids" in batch:
        return model(batch["ids"], **options)
    y = model(**batch, **options)
    if hasattr(y, "start_logits"):
        return torch.cat([y.start_logits, y.end_logits], 1)
    return y.last_hidden_state if not hasattr(y, "logits") else y.logits


def compiles_whole(model: nn.Module, **batch: Any) -> None:
    """Assert that a model compiles into one graph, which says the same."""
    expected = model(**batch).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch).logits, expected)
    torch._dynamo.reset()


def shake(model: nn.Module, seed: int = 5, size: float = 0.3, only: str = "") -> nn.Module:
    """Move every trainable tensor (whose name holds `only`) at random, as training would; names decide, not order."""
    for name, p in sorted(model.named_parameters()):
        if p.requires_grad and only in name:
            g = torch.Generator().manual_seed(seed * 1000 + sum(map(ord, name)))
            p.data.add_((size * torch.randn(p.shape, generator=g, device="cpu")).to(p))
    return model

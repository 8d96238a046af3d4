"""Default target modules by architecture (`config.model_type`): which layers a method adapts when a user names none.

The names are facts about the architectures; the choices are those of Hugging Face PEFT, so that a configuration
without `target_modules` means the same there and here.
"""

Targets = dict[str, list[str] | str]

_QV = ["q_proj", "v_proj"]
_QUERY_VALUE = ["query", "value"]
_FUSED = ["query_key_value"]

LORA_TARGETS: Targets = {
    **dict.fromkeys(("t5", "mt5"), ["q", "v"]),
    **dict.fromkeys(
        "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3".split(), _QV
    ),
    **dict.fromkeys("bert roberta xlm-roberta electra layoutlm".split(), _QUERY_VALUE),
    **dict.fromkeys("bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon".split(), _FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ["c_attn"]),
    "blip-2": ["q", "v", "q_proj", "v_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "deberta": ["in_proj"],
    "mpt": ["Wqkv"],
    "btlm": ["c_proj", "c_attn"],
    "codegen": ["qkv_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}

_ALL_BART = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
ADALORA_TARGETS: Targets = LORA_TARGETS | {
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    **dict.fromkeys(("bart", "opt"), _ALL_BART),
    "roberta": ["query", "key", "value", "dense"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
}

VERA_TARGETS: Targets = LORA_TARGETS | {"phi": _QV}

IA3_FEEDFORWARD: Targets = {
    "t5": ["wo"],
    "mt5": [],
    "roberta": ["output.dense"],
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ["mlp.c_proj"]),
    "bloom": ["mlp.dense_4h_to_h"],
    **dict.fromkeys("opt bart phi".split(), ["fc2"]),
    "gptj": ["fc_out"],
    **dict.fromkeys("gpt_neox RefinedWebModel RefinedWeb falcon".split(), ["dense_4h_to_h"]),
    "gpt_neo": ["c_proj"],
    **dict.fromkeys("llama llama4 mistral gemma gemma2 gemma3_text qwen2 qwen3".split(), ["down_proj"]),
    "mixtral": ["w2"],
    **dict.fromkeys("bert deberta-v2 deberta".split(), ["output.dense"]),
}

_IA3_ATTENTION: Targets = {
    "t5": ["k", "v"],
    "mt5": ["k", "v", "wi_1"],
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ["c_attn"]),
    **dict.fromkeys("bloom gpt_neox RefinedWebModel RefinedWeb falcon".split(), _FUSED),
    **dict.fromkeys(("roberta", "bert"), ["key", "value"]),
    "opt": ["q_proj", "k_proj"],
    **dict.fromkeys("gptj gpt_neo bart llama4 phi gemma gemma2 gemma3_text qwen2 qwen3".split(), _QV),
    **dict.fromkeys("llama mistral mixtral".split(), ["k_proj", "v_proj"]),
    "deberta-v2": ["key_proj", "value_proj"],
    "deberta": ["in_proj"],
}

IA3_TARGETS: Targets = {kind: [*names, *IA3_FEEDFORWARD[kind]] for kind, names in _IA3_ATTENTION.items()}

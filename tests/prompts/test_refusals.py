"""What a prompt cannot do is said before anything is changed, and what a call would ignore when it is made."""

import pytest
import torch
from tests.prompts.setting import V, adapted, base, batch, config_of

import trimtab
from trimtab.errors import AdapterError, ConfigError

REFUSED = {
    "no task": ("llama", "CAUSAL_LM", "prompt", {"task_type": None}, r"`task_type` must be given"),
    "no number": ("llama", "CAUSAL_LM", "p-mlp", {"num_virtual_tokens": None}, r"`num_virtual_tokens` must be given"),
    "no cache": ("distilbert", "SEQ_CLS", "prefix", {}, r"DistilBert\w+ takes no `past_key_values`.*; use prompt"),
    "no cache either": ("modernbert", "TOKEN_CLS", "prefix", {}, r"takes no `past_key_values`"),
    "hidden by kwargs": ("distilbert", "FEATURE_EXTRACTION", "prefix", {}, r"takes no `past_key_values`"),
    "state space": ("mamba", "CAUSAL_LM", "prefix", {}, r"MambaForCausalLM takes no `past_key_values`"),
    "compressed": ("deepseek", "CAUSAL_LM", "prefix", {}, r"keeps compressed keys, .*; use prompt tuning"),
    "linear": ("qwen3-next", "CAUSAL_LM", "prefix", {}, r"more than keys and values \('LinearAttentionLayer'\)"),
    "two stacks": ("bart", "SEQ_CLS", "prompt", {}, r"BartForSequenceClassification .* cannot take a prompt; use LoRA"),
    "other width": ("llama", "CAUSAL_LM", "prompt", {"token_dim": 31}, r"`token_dim`=31, but it is 32 in LlamaFor"),
    "other heads": ("llama", "CAUSAL_LM", "prefix", {"num_attention_heads": 4, "num_layers": 3},
                    r"`num_layers`=3, but it is 2 .*`num_attention_heads`=4, but it is 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_prompt_without_effect_is_refused_before_anything_changes(case):
    arch, task, method, changes, message = REFUSED[case]
    model = base(arch, task)
    cfg = config_of(trimtab, method, task, **changes)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        trimtab.get_peft_model(model, cfg)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_only_transformers_models_take_prompts():
    with pytest.raises(ConfigError, match="PromptTuningConfig needs a Transformers model; Linear is none"):
        trimtab.get_peft_model(torch.nn.Linear(2, 2), config_of(trimtab, "prompt", "SEQ_CLS"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("PromptTuningConfig", {"num_virtual_tokens": 0}, "`num_virtual_tokens`=0 must be at least 1"),
        ("PromptTuningConfig", {"prompt_tuning_init": "WORDS"}, "`prompt_tuning_init`='WORDS' is unknown; .*SAMPLE"),
        ("PromptTuningConfig", {"prompt_tuning_init": "TEXT"}, "init_text` must be given.*`tokenizer_name_or_path`"),
        ("PromptTuningConfig", {"tokenizer_kwargs": {"a": 1}}, "`tokenizer_kwargs` are for"),
        ("PrefixTuningConfig", {"init_weights": "one"}, "`init_weights`='one' is unknown; choose None or 'zero'"),
        ("PrefixTuningConfig", {"encoder_hidden_size": 0}, "`encoder_hidden_size`=0 must be at least 1"),
        ("PromptEncoderConfig", {"encoder_reparameterization_type": "GRU"}, "='GRU' is unknown; choose one of 'MLP'"),
        ("PromptEncoderConfig", {"encoder_hidden_size": 0}, "`encoder_hidden_size`=0 must be at least 1"),
        ("PromptEncoderConfig", {"encoder_num_layers": 0}, "`encoder_num_layers`=0 must be at least 1"),
        ("PromptEncoderConfig", {"encoder_dropout": 1.0}, r"`encoder_dropout`=1.0 must be in \[0, 1\)"),
    ],
)
def test_a_configuration_says_what_is_wrong(name, options, message):
    with pytest.raises(ConfigError, match=message):
        getattr(trimtab, name)(**options)


def test_a_text_without_tokens_is_refused(tokenizer):
    options = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "  ", "tokenizer_name_or_path": tokenizer}
    with pytest.raises(ConfigError, match=r"`prompt_tuning_init_text`='  ' has no tokens in"):
        adapted("llama", "CAUSAL_LM", "prompt", **options)


def test_calls_in_which_the_prompt_would_be_ignored_are_refused():
    ids = batch("llama", "CAUSAL_LM")["input_ids"]
    prompt, prefix = adapted("llama", "CAUSAL_LM", "prompt"), adapted("llama", "CAUSAL_LM", "prefix")
    with pytest.raises(AdapterError, match="give `input_ids` or `inputs_embeds`"):
        prompt(attention_mask=torch.ones_like(ids))
    with pytest.raises(AdapterError, match="the batch is unknown: give one of 'input_ids'"):
        prefix(attention_mask=torch.ones_like(ids))
    with pytest.raises(AdapterError, match=r"needs `attention_mask` as \(batch, tokens\), not \(2, 1, 7, 7\)"):
        prompt(ids, attention_mask=torch.ones(2, 1, 7, 7))
    with pytest.raises(AdapterError, match=r"assisted generation \('prompt_lookup_num_tokens'\) does not know"):
        prompt.generate(ids, prompt_lookup_num_tokens=2)
    pair = adapted("t5", "SEQ_2_SEQ_LM", "prompt")
    encoded = pair.get_base_model().get_encoder()(ids)
    with pytest.raises(AdapterError, match="`encoder_outputs` were computed without the prompt"):
        pair(encoder_outputs=encoded, labels=ids)
    prefix.train().get_base_model().gradient_checkpointing_enable()
    with pytest.raises(AdapterError, match="gradient checkpointing drops the cache and with it the prefix"):
        prefix(ids, labels=ids)
    assert prefix.eval()(ids).logits.shape == (2, 7, V)

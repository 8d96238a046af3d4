"""Prompt methods: outputs and files both ways with PyPI peft, masks and labels, generation, resuming, refusals."""

import warnings
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

pytest.importorskip("transformers")
import transformers as tf

import trimtab
from trimtab.errors import AdapterError, AdapterFileError, ConfigError

peft = pytest.importorskip("peft")
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
METHODS = {
    "prompt": ("PromptTuningConfig", {}),
    "prefix": ("PrefixTuningConfig", {}),
    "prefix-projected": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 24}),
    "cartridge": ("CartridgeConfig", {"num_frozen_tokens": 2}),
    "p-mlp": ("PromptEncoderConfig", {"encoder_hidden_size": 24}),
    "p-lstm": ("PromptEncoderConfig", {"encoder_hidden_size": 8, "encoder_reparameterization_type": "LSTM"}),
}
EMBEDS = ["prompt", "p-mlp", "p-lstm"]
CELLS = [
    *((a, "CAUSAL_LM") for a in ("llama", "qwen3", "gemma", "gemma3", "gpt2", "opt", "bloom")),
    *((a, "SEQ_2_SEQ_LM") for a in ("t5", "bart", "m2m100")),
    *((a, "SEQ_CLS") for a in ("bert", "roberta", "llama")),
    *((a, "TOKEN_CLS") for a in ("bert", "gpt2")),
    *((a, "QUESTION_ANS") for a in ("bert", "llama")),
    *((a, "FEATURE_EXTRACTION") for a in ("bert", "llama")),
]
TABLE = [(a, t, m) for a, t in CELLS for m in METHODS]
RESUMED = [("llama", "CAUSAL_LM"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"), ("bert", "SEQ_CLS")]
ROWS = [(a, t, m) for a, t in RESUMED for m in METHODS]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def base(arch, task, **changes):
    config = CONFIGS[arch]()
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        config.num_labels = 3
    torch.manual_seed(0)
    return AUTO[task].from_config(config, **changes).eval()


def config_of(library, method, task, **changes):
    name, options = METHODS[method]
    return getattr(library, name)(task_type=task, num_virtual_tokens=N, **options | changes)


def adapted(arch, task, method, seed=3, **changes):
    model = base(arch, task)
    torch.manual_seed(seed)
    return trimtab.get_peft_model(model, config_of(trimtab, method, task, **changes)).eval()


def batch(arch, task, labels=True):
    """Two rows of 7 tokens, the second padded by two: on the right, or for a decoder's classifier on the left."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (2, 7), generator=g)
    mask = torch.ones_like(ids)
    padding = slice(0, 2) if arch == "llama" and task == "SEQ_CLS" else slice(5, 7)
    ids[1, padding], mask[1, padding] = CONFIGS[arch]().pad_token_id, 0
    made = {"input_ids": ids, "attention_mask": mask}
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


# both ways with peft


@pytest.mark.parametrize(("arch", "task", "method"), TABLE)
def test_outputs_and_files_both_ways(arch, task, method, tmp_path):
    inputs = batch(arch, task, labels=False)
    length = None if task == "SEQ_CLS" else 5 if task == "SEQ_2_SEQ_LM" else 7  # peft keeps virtual positions
    torch.manual_seed(5)
    theirs = peft.get_peft_model(base(arch, task), config_of(peft, method, task)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(
            result(loaded(**inputs), length), result(theirs(**inputs), length), atol=1e-5, rtol=0
        )
    ours = adapted(arch, task, method)
    shapes = {k: p.shape for k, p in ours.named_parameters() if p.requires_grad}
    assert shapes == {k: p.shape for k, p in theirs.named_parameters() if p.requires_grad}
    ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(base(arch, task), tmp_path / "ours").eval()
        torch.testing.assert_close(result(loaded(**inputs), length), result(ours(**inputs), length), atol=1e-5, rtol=0)
        assert not torch.allclose(result(ours(**inputs), length), result(base(arch, task)(**inputs), length), atol=1e-6)
    said, known = ours.peft_config["default"].to_dict(), theirs.peft_config["default"].to_dict()
    known |= {"modules_to_save": list(dict.fromkeys(known["modules_to_save"])) if known["modules_to_save"] else None}
    skipped = ("auto_mapping", "base_model_name_or_path", *(["modules_to_save"] if task == "QUESTION_ANS" else []))
    assert {k: v for k, v in said.items() if k not in skipped} == {k: v for k, v in known.items() if k not in skipped}


@pytest.mark.parametrize("name", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_fields_and_defaults_are_those_of_peft(name):
    assert getattr(trimtab, name)().to_dict() == getattr(peft, name)().to_dict()


# masks, labels, positions


@pytest.mark.parametrize("method", ["prompt", "p-lstm"])
def test_causal_loss_is_that_of_the_real_tokens(method):
    model, inputs = adapted("llama", "CAUSAL_LM", method), batch("llama", "CAUSAL_LM")
    plain, prompt = model.get_base_model(), model.get_prompt(2)
    embedded = torch.cat([prompt, plain.get_input_embeddings()(inputs["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), inputs["attention_mask"]], dim=1)
    logits = plain(inputs_embeds=embedded, attention_mask=mask).logits
    expected = cross_entropy(logits[:, N - 1 : -1].reshape(-1, V), inputs["labels"].reshape(-1), ignore_index=-100)
    out = model(**inputs)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.logits, logits)  # a language model keeps the virtual positions, as in peft


def test_prefix_is_a_cache_before_the_tokens():
    model, inputs = adapted("llama", "CAUSAL_LM", "prefix"), batch("llama", "CAUSAL_LM")
    table = model.prompt_encoder["default"].embedding.weight.view(N, 2, 2, 2, 8)  # n, layer, key or value, head, width
    cache = tf.DynamicCache()
    for layer in range(2):
        key, value = (table[:, layer, i].transpose(0, 1).expand(2, -1, -1, -1) for i in range(2))
        cache.update(key, value, layer)
    mask = torch.cat([torch.ones(2, N, dtype=torch.long), inputs["attention_mask"]], dim=1)
    logits = model.get_base_model()(inputs["input_ids"], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(model(**inputs).logits, logits)
    labels = inputs["labels"][:, 1:].reshape(-1)
    expected = cross_entropy(logits[:, :-1].reshape(-1, V), labels, ignore_index=-100)
    torch.testing.assert_close(model(**inputs).loss, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["bert", "gpt2"])
def test_token_outputs_and_labels_align(arch, method):
    model, inputs = adapted(arch, "TOKEN_CLS", method), batch(arch, "TOKEN_CLS")
    out = model(**inputs, output_hidden_states=True)
    assert out.logits.shape == (2, 7, 3)
    assert out.hidden_states[-1].shape == (2, 7, 32)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits.view(-1, 3), inputs["labels"].view(-1)))
    as_tuple = model(**inputs, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.loss)
    torch.testing.assert_close(as_tuple[1], out.logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_answer_positions_are_those_of_the_input(arch, method):
    model, inputs = adapted(arch, "QUESTION_ANS", method), batch(arch, "QUESTION_ANS")
    out = model(**inputs)
    assert out.start_logits.shape == (2, 7)
    start = cross_entropy(out.start_logits, inputs["start_positions"])
    end = cross_entropy(out.end_logits[:1], inputs["end_positions"][:1])  # the other one lies outside the text
    torch.testing.assert_close(out.loss, (start + end) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_features_align_with_the_tokens(method):
    assert adapted("bert", "FEATURE_EXTRACTION", method)(**batch("bert", "FEATURE_EXTRACTION"))[0].shape == (2, 7, 32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "bert"])
def test_padding_on_the_right_changes_nothing(arch, method):
    model, inputs = adapted(arch, "SEQ_CLS", method), batch("gpt2", "SEQ_CLS", labels=False)
    alone = {k: v[1:, :5] for k, v in inputs.items()}
    torch.testing.assert_close(model(**inputs).logits[1:], model(**alone).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_positions_given_are_positions_without_the_prompt(arch, method):
    model, inputs = adapted(arch, "CAUSAL_LM", method), batch(arch, "CAUSAL_LM")
    positions = torch.arange(7).expand(2, -1)
    torch.testing.assert_close(model(**inputs, position_ids=positions).logits, model(**inputs).logits)
    torch.testing.assert_close(model(inputs["input_ids"][:1]).logits, model(**inputs).logits[:1])  # no mask, by place


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("arch", "task"), [("bert", "SEQ_CLS"), ("gemma3", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_eager_attention_agrees(arch, task, method):
    model, inputs = adapted(arch, task, method), batch(arch, task)
    expected = model(**inputs).logits
    model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    unmasked = {k: v[:1] for k, v in inputs.items() if k != "attention_mask"}
    torch.testing.assert_close(model(**unmasked).logits, expected[:1], atol=1e-5, rtol=1e-4)


def test_two_submodules_read_the_pairs_that_peft_reads_and_one_reads_its_own():
    rows = torch.arange(4 * 2 * 2 * 32, dtype=torch.float).view(4, -1)
    for submodules, pairs in ((None, [0, 0]), (1, [0, 1])):
        model = adapted("bart", "SEQ_2_SEQ_LM", "prefix", num_transformer_submodules=submodules)
        model.prompt_encoder["default"].embedding.weight.data = rows.clone()
        cache = model.get_prompt(1).self_attention_cache
        firsts = [layer.keys[0, 0, 0, 0].item() for layer in cache.layers]
        assert firsts == [rows[0, 64 * pair].item() for pair in pairs]


# generation

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "t5", "bart"])
def test_generation_equals_pefts(arch, method, tmp_path):
    task = "SEQ_2_SEQ_LM" if arch in ("t5", "bart") else "CAUSAL_LM"
    inputs = {k: v[:1] for k, v in batch(arch, task).items() if k != "labels"}
    torch.manual_seed(5)
    theirs = peft.get_peft_model(base(arch, task), config_of(peft, method, task)).eval()
    for parameter in theirs.prompt_encoder.parameters():
        parameter.data *= 3  # else a tiny model says the same with any prompt
    theirs.save_pretrained(tmp_path)
    ours = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path)
    for options in ({}, {"num_beams": 3}):
        torch.testing.assert_close(
            ours.generate(**inputs, **GREEDY, **options), theirs.generate(**inputs, **GREEDY, **options)
        )
    torch.testing.assert_close(ours.generate(**inputs, **GREEDY, use_cache=False), ours.generate(**inputs, **GREEDY))
    assert "forward" not in vars(ours.get_base_model())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_generation_in_a_padded_batch_equals_one_by_one(arch, method):
    model = adapted(arch, "CAUSAL_LM", method)
    inputs = {k: v for k, v in batch(arch, "CAUSAL_LM").items() if k != "labels"}
    left = {k: torch.cat([v[:1], v[1:].roll(2)]) for k, v in inputs.items()}
    for options in ({}, {"num_beams": 3}):
        together = model.generate(**left, **GREEDY, **options)[1, -5:]
        alone = model.generate(**{k: v[1:, :5] for k, v in inputs.items()}, **GREEDY, **options)[0, -5:]
        assert together.tolist() == alone.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_that_is_given_back_holds_the_prompt(method):
    model, ids = adapted("llama", "CAUSAL_LM", method), batch("llama", "CAUSAL_LM")["input_ids"][:1]
    first = model(ids[:, :4], use_cache=True)
    rest = model(ids[:, 4:], past_key_values=first.past_key_values, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(rest.logits, model(ids).logits[:, -3:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_padding_that_no_mask_tells_of_is_found_in_the_ids(method):
    model, inputs = adapted("t5", "SEQ_2_SEQ_LM", method), batch("t5", "SEQ_2_SEQ_LM")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    assert model.generate(ids, **GREEDY).tolist() == expected.tolist()


# training and files


def train(model, inputs, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("arch", "task", "method"), ROWS)
def test_training_goes_on_exactly_after_saving(arch, task, method, tmp_path):
    inputs = batch(arch, task)
    through = train(adapted(arch, task, method), inputs, 4)
    half = train(adapted(arch, task, method), inputs, 2)
    half.save_pretrained(tmp_path)
    resumed = trimtab.PeftModel.from_pretrained(base(arch, task), tmp_path, is_trainable=True)
    train(resumed, inputs, 2)
    expected = dict(through.named_parameters())
    start = dict(adapted(arch, task, method).named_parameters())
    moved = [n for n, p in resumed.named_parameters() if p.requires_grad and not torch.equal(p, start[n])]
    assert len(moved) == sum(p.requires_grad for p in start.values())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("method", "more"),
    [("prompt", 0), ("prefix", 0), ("prefix-projected", 5), ("p-mlp", 7), ("p-lstm", 21)],
)
def test_a_file_holds_the_prompt_and_what_made_it(method, more, tmp_path):
    model = adapted("llama", "CAUSAL_LM", method, **({"encoder_dropout": 0.5} if method == "p-lstm" else {})).train()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = {f"prompt_encoder.{k}" for k in model.prompt_encoder["default"].state_dict()} if more else set()
    assert len(names) == more
    assert tensors.keys() == {"prompt_embeddings", *names}
    assert model.prompt_encoder["default"].training
    finished = model.eval().prompt_encoder["default"]()  # without dropout
    torch.testing.assert_close(tensors["prompt_embeddings"], finished)
    frozen = trimtab.PeftModel.from_pretrained(base("llama", "CAUSAL_LM"), tmp_path)
    assert [n for n, _ in frozen.prompt_encoder.named_parameters()] == ["default.embedding.weight"]
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_table_saved_by_peft_can_be_trained_on_but_not_the_result_of_a_network(tmp_path):
    for method in METHODS:
        theirs = peft.get_peft_model(base("llama", "CAUSAL_LM"), config_of(peft, method, "CAUSAL_LM"))
        theirs.save_pretrained(tmp_path / method)
        if method in ("prompt", "prefix"):
            ours = trimtab.PeftModel.from_pretrained(base("llama", "CAUSAL_LM"), tmp_path / method, is_trainable=True)
            train(ours, batch("llama", "CAUSAL_LM"), 1)
            continue
        with pytest.raises(
            AdapterFileError, match=r"finished prompt .* not the network that made it.*is_trainable=False"
        ):
            trimtab.PeftModel.from_pretrained(base("llama", "CAUSAL_LM"), tmp_path / method, is_trainable=True)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    adapted("bert", "SEQ_CLS", "p-mlp").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    wrong = {k: t for k, t in tensors.items() if "mlp_head.2.bias" not in k}
    wrong |= {"prompt_encoder.embedding.weight": torch.ones(3, 32), "nonsense": torch.ones(1)}
    save_file(wrong, file)
    model = adapted("bert", "SEQ_CLS", "p-mlp", seed=8)
    before = deepcopy(model.state_dict())
    with pytest.raises(AdapterFileError) as error:
        model.load_adapter(tmp_path, "default", is_trainable=True)
    for part in (r"file has (3, 32), the model (4, 32)", "mlp_head.2.bias: in the model", "nonsense: in the file"):
        assert part in str(error.value)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


# adapters beside each other, numbers


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_prompts_coexist_and_step_aside(task):
    arch = "llama" if task == "CAUSAL_LM" else "bert"
    inputs = batch(arch, task)
    plain = base(arch, task)(**inputs).logits
    model = adapted(arch, task, "prompt")
    first = model(**inputs).logits
    model.add_adapter("other", config_of(trimtab, "prefix", task))
    assert torch.equal(model(**inputs).logits, first)
    model.set_adapter("other")
    assert not torch.allclose(model(**inputs).logits[:, -1], first[:, -1])
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, plain)
    model.set_adapter("default")
    assert torch.equal(model(**inputs).logits, first)
    model.delete_adapter("other")
    assert list(model.prompt_encoder) == ["default"]


@pytest.mark.parametrize("method", METHODS)
def test_the_start_depends_on_the_seed_alone_and_leaves_it(method):
    first, model = adapted("llama", "CAUSAL_LM", method), base("llama", "CAUSAL_LM")
    torch.manual_seed(3)
    torch.rand(5)
    state = torch.get_rng_state()
    second = trimtab.get_peft_model(model, config_of(trimtab, method, "CAUSAL_LM"))
    assert torch.equal(torch.get_rng_state(), state)
    ones, twos, others = (
        next(m.prompt_encoder["default"].parameters())
        for m in (first, second, adapted("llama", "CAUSAL_LM", method, seed=4))
    )
    assert torch.equal(ones, twos)
    assert not torch.equal(ones, others)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_bases_train_a_float32_prompt(method):
    model = base("llama", "CAUSAL_LM").bfloat16()
    model = trimtab.get_peft_model(model, config_of(trimtab, method, "CAUSAL_LM"))
    assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.float32}
    train(model, batch("llama", "CAUSAL_LM"), 1)
    assert model(**batch("llama", "CAUSAL_LM")).logits.dtype == torch.bfloat16
    model = trimtab.get_peft_model(
        base("llama", "CAUSAL_LM").bfloat16(), config_of(trimtab, method, "CAUSAL_LM"), autocast_adapter_dtype=False
    )
    assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.bfloat16}
    model = adapted("llama", "CAUSAL_LM", method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, batch("llama", "CAUSAL_LM"), 1)


@pytest.mark.parametrize("method", EMBEDS)
def test_gradient_checkpointing_changes_nothing(method):
    inputs, gradients = batch("llama", "CAUSAL_LM"), []
    for on in (False, True):
        model = adapted("llama", "CAUSAL_LM", method).train()
        if on:
            model.get_base_model().gradient_checkpointing_enable()
        model(**inputs).loss.backward()
        gradients.append(model.prompt_encoder["default"].embedding.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate("[UNK] is this review good or bad".split())}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize(("text", "ids"), [("good bad", [4, 6, 4, 6]), ("is this review good or", [1, 2, 3, 4])])
def test_a_prompt_can_start_as_a_text(text, ids, tokenizer):
    options = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": tokenizer}
    ours = adapted("llama", "CAUSAL_LM", "prompt", **options)
    theirs = peft.get_peft_model(base("llama", "CAUSAL_LM"), config_of(peft, "prompt", "CAUSAL_LM", **options))
    expected = ours.get_base_model().get_input_embeddings().weight[ids]
    assert torch.equal(ours.prompt_encoder["default"].embedding.weight, expected)
    assert torch.equal(theirs.prompt_encoder["default"].embedding.weight, expected)


def test_a_prompt_can_start_as_words_of_the_vocabulary_and_a_prefix_at_zero():
    model = adapted("llama", "CAUSAL_LM", "prompt", prompt_tuning_init="SAMPLE_VOCAB")
    words = model.get_base_model().get_input_embeddings().weight
    assert all((words == row).all(dim=1).any() for row in model.prompt_encoder["default"].embedding.weight)
    for method in ("prefix", "prefix-projected"):
        assert not adapted("llama", "CAUSAL_LM", method, init_weights="zero").prompt_encoder["default"]().any()


@pytest.mark.parametrize("arch", ["falcon", "starcoder", "mt5", "electra", "whisper"])
def test_prefixes_fit_caches_of_every_shape(arch):
    pair, sounds = (
        arch in ("mt5", "whisper"),
        {"input_features": torch.ones(2, 16, 40), "labels": torch.ones(2, 5).long()},
    )
    task = "SEQ_2_SEQ_LM" if pair else "SEQ_CLS" if arch == "electra" else "CAUSAL_LM"
    if arch == "whisper":
        torch.manual_seed(0)
        model = tf.WhisperForConditionalGeneration(CONFIGS[arch]())
        model = trimtab.get_peft_model(model, config_of(trimtab, "prefix", task))
    else:
        model = adapted(arch, task, "prefix")
    train(model, sounds if arch == "whisper" else batch("t5" if pair else "gpt2", task), 1)
    assert all(p.grad.abs().sum() > 0 for p in model.prompt_encoder.parameters())


@pytest.mark.parametrize("method", EMBEDS)
@pytest.mark.parametrize("arch", ["electra", "distilbert"])
def test_bases_that_peft_cannot_give_a_prompt(arch, method):
    model = train(adapted(arch, "SEQ_CLS", method), batch("gpt2", "SEQ_CLS"), 1)
    assert all(p.grad.abs().sum() > 0 for p in model.prompt_encoder.parameters())


# refusals

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
    name, options = METHODS[method]
    cfg = getattr(trimtab, name)(**{"task_type": task, "num_virtual_tokens": N} | options | changes)
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

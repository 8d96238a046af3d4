"""LLaMA-Adapter, on the attention of real models."""

from tests.row import Row

BARE = {"keys in memory": "PEFT's have no adapter's name: it holds one adapter at a time"}


def adaption(model: str, layers: int = 2, oracle: str | None = None, **options: object) -> Row:
    options |= {"adapter_len": 3, "adapter_layers": layers}
    return Row("LLaMA-Adapter", "ADAPTION_PROMPT", options, model, oracle=oracle, without=BARE)


ROWS = [adaption("llama", 1), adaption("gpt2"), adaption("qwen3", oracle="PEFT does not know the architecture")]

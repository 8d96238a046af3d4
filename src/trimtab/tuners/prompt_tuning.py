"""Prompt tuning, under the names Hugging Face PEFT gave its parts."""

from ..methods.prompt_tuning import PromptEmbedding, PromptTuningConfig, PromptTuningInit

__all__ = ["PromptEmbedding", "PromptTuningConfig", "PromptTuningInit"]

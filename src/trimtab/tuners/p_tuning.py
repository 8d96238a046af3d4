"""P-tuning, under the names Hugging Face PEFT gave its parts."""

from ..methods.p_tuning import PromptEncoder, PromptEncoderConfig, PromptEncoderReparameterizationType

__all__ = ["PromptEncoder", "PromptEncoderConfig", "PromptEncoderReparameterizationType"]

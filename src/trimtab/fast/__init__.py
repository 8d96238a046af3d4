"""Fused paths: each replaces a chain of adapters on one kind of layer. Importing this package registers them all."""

from . import lora_linear as lora_linear

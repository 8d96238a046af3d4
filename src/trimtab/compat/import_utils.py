"""Which optional packages are installed, under the names Hugging Face PEFT gave the questions."""

from importlib.util import find_spec


def is_bnb_available() -> bool:
    """Whether bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


def is_bnb_4bit_available() -> bool:
    """Whether bitsandbytes is installed; every version that Trimtab works with has 4-bit layers."""
    return is_bnb_available()


def is_torchao_available() -> bool:
    """Whether torchao is installed."""
    return find_spec("torchao") is not None


def is_diffusers_available() -> bool:
    """Whether diffusers is installed."""
    return find_spec("diffusers") is not None

"""What anything of ours raises."""

from ..errors import TrimtabError as PeftError

__all__ = ["PeftError"]

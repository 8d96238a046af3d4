"""What anything of ours warns with."""

from ..errors import TrimtabWarning as PeftWarning

__all__ = ["PeftWarning"]

"""Every error and warning that Trimtab raises: what was asked, what was found, what to do.

A caller who wants to catch anything of ours catches `TrimtabError`. The kinds also derive from the built-in class that
Hugging Face PEFT raises in the same place, so that existing `except ValueError` clauses keep working.
"""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class TrimtabError(Exception):
    """Base of every error raised by Trimtab."""


class ConfigError(TrimtabError, ValueError):
    """An adapter configuration, or an argument, that contradicts itself or names something unknown."""


class TargetError(TrimtabError, ValueError):
    """The targets of a configuration do not exist in the model, or cannot carry its method."""


class NoMatchingPeftModuleError(TargetError):
    """No module of the model matches the targets of the configuration."""


class AdapterError(TrimtabError, ValueError):
    """An adapter name that is unknown, already taken, or used in a state that forbids it."""


class AdapterFileError(TrimtabError, ValueError):
    """An adapter file that is missing, unreadable, or does not fit the model it is loaded into."""


class MergeError(TrimtabError, ValueError):
    """A merge that cannot be done exactly; nothing was changed."""


class ConversionError(TrimtabError, TypeError, ValueError):
    """An adapter that has no equivalent of the kind that was asked for."""


class BaseStateError(TrimtabError, RuntimeError, ValueError):
    """A state that is not that of the base model."""


class CompatError(TrimtabError, RuntimeError):
    """Something that another library has done forbids what was asked."""


class TrimtabWarning(UserWarning):
    """Something a user will want to know that does not stop the work."""


def listing(items: Iterable[object], most: int = 8) -> str:
    """`a, b, c and 4 more`: the items for an error message, quoted, cut after `most`."""
    every = [repr(i) if isinstance(i, str) else str(i) for i in items]
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"


def nearest(wanted: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names in `known` that look most like `wanted`, the closest first."""
    return get_close_matches(wanted, list(known), n=most, cutoff=0.5)


def warn(text: str) -> None:
    """Warn the user, from the first line outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("trimtab."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, TrimtabWarning, stacklevel=level)

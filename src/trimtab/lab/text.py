"""Small pieces of wording shared by messages and tables."""

from collections.abc import Iterable
from difflib import get_close_matches


def allowed(found: object, options: Iterable[str]) -> str:
    """The options, led by the nearest to what was found: `did you mean 'lora'? allowed: full, ia3, lora`."""
    options = sorted(options)
    near = get_close_matches(str(found), options, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"allowed: {', '.join(options)}"


def count(number: int, noun: str) -> str:
    """`1 text`, `2 texts`, `1,000 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`8 s`, `1 min 07 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(number: float) -> str:
    """Bytes as people read them, in powers of 1000: `512 B`, `31.5 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"

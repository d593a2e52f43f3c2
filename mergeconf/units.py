"""Sizes as people write and read them: `5GB`, `64MiB`, `1.2 GB`. Knows nothing else."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
    "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Return a size in bytes: an integer, or text such as `5GB` (10^9) or `64MiB` (2^20).

    Raises:
        ValueError: the text is no size, or the size is not positive.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{text!r} is no size; write for example 5GB or 64MiB")
    match = _SIZE.fullmatch(str(text))
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; write for example 5GB or 64MiB")
    size = int(float(match[1]) * factor)
    if size <= 0:
        raise ValueError(f"{text!r} is not more than zero bytes")
    return size


def format_size(size: float) -> str:
    """Return bytes as people read them, in powers of ten: `12.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it: `0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_count(number: int) -> str:
    """Return a count as people read it: `12,345` or `1.10 B`."""
    for factor, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:,}"

"""How are values named in messages, and how is one refused whose place the caller knows?"""

from __future__ import annotations

import math
from collections.abc import Mapping

Scalar = float | int | bool | str
"""What a parameter's value is made of."""


class BadValue(ValueError):
    """A value that cannot be used, with a hint; the caller knows its place in the recipe."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def show(scalar: object) -> str:
    """Return a scalar as a recipe would write it."""
    if isinstance(scalar, bool):
        return "true" if scalar else "false"
    if scalar is None:
        return "nothing"
    if isinstance(scalar, float):
        if not math.isfinite(scalar):
            return ".nan" if math.isnan(scalar) else ".inf" if scalar > 0 else "-.inf"
        return str(int(scalar)) if scalar.is_integer() and abs(scalar) < 1e15 else repr(scalar)
    if isinstance(scalar, int):
        return str(scalar) if abs(scalar) < 10**30 else f"a number of {scalar.bit_length()} bits"
    text = str(scalar)
    return f"'{text}'" if len(text) <= 60 else f"'{text[:57]}...'"


def show_list(scalars: tuple[Scalar, ...]) -> str:
    """Return scalars as a recipe would write their list, the middle of a long one left out."""
    shown = [show(scalar) for scalar in scalars]
    if len(shown) > 12:
        shown = [*shown[:6], "...", *shown[-3:]]
    return f"[{', '.join(shown)}]"


def describe(value: object) -> str:
    """Return a value as a message names it."""
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return show(value)

"""Which models changed a parameter, and alone or together: what both RAM methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeconf.graph import ops


def changed_masks(deltas: Sequence[Any], epsilon: float) -> list[Any]:
    """Return for each delta the mask of the elements of a magnitude above epsilon."""
    return [ops.greater(abs(delta), epsilon) for delta in deltas]


def contributors(changed: Sequence[Any]) -> Any:
    """Return in how many of the masks each element is true, at least 1."""
    return ops.no_less(ops.add_all([ops.ones(mask) for mask in changed]), 1.0)

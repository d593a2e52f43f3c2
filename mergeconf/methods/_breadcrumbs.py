"""Dropping both tails: the part that both breadcrumbs methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeconf.graph import ops
from mergeconf.methods._task_vectors import restore_l1


def drop_tails(
    deltas: Sequence[Any], density: Sequence[float], gamma: Sequence[float], rescale: bool
) -> list[Any]:
    """Keep of each delta the elements of middling magnitude, set the others to 0."""
    results = []
    for delta, share, top in zip(deltas, density, gamma, strict=True):
        if share >= 1:
            results.append(delta)
            continue
        kept = ops.only(middle(delta, share, top), delta)
        results.append(restore_l1(kept, delta) if rescale else kept)
    return results


def dropped_largest(numel: int, density: float, gamma: float) -> tuple[int, int]:
    """Return how many of the largest elements are dropped, and how many after them are kept."""
    kept = int(density * numel)
    return min(int(gamma * numel), numel - kept), kept


def middle(delta: Any, density: float, gamma: float) -> Any:
    """Return the mask of the elements that are kept.

    Sorted by magnitude, the largest `dropped` are left out and the next `kept` stay. The mask is
    true from the magnitude of the last of these to that of the first, both included, so equal
    magnitudes stay together, and never fewer than `kept` stay.
    """
    magnitude = abs(delta)
    dropped, kept = dropped_largest(delta.numel(), density, gamma)
    if kept == 0:
        return ops.less(magnitude, 0.0)
    mask = ops.at_least(magnitude, ops.kth_largest(magnitude, dropped + kept))
    if dropped == 0:
        return mask
    too_large = ops.greater(magnitude, ops.kth_largest(magnitude, dropped + 1))
    return ops.both(mask, ops.opposite(too_large))

"""What the methods that work on deltas (task vectors) have in common."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from mergeconf.graph import ops

T = Any

_SMALLEST_NORMAL = 2.0**-126
"""The smallest float32 of full precision: a weight below it may round to 0."""

L1_FLOOR = 1e-7
"""A sum of magnitudes below this is not restored, and nothing is scaled by it."""
WEIGHT_FLOOR = 1e-8
"""Weights whose sum is smaller are not divided by it."""


def deltas_of(base: T, models: Sequence[T]) -> list[T]:
    """Return each model's delta θi − θ0."""
    return [model - base for model in models]


def kept_count(density: float, numel: int) -> int:
    """Return how many of `numel` elements a density keeps: max(1, floor(density · numel))."""
    return max(1, int(density * numel))


def trim(delta: T, density: float) -> T:
    """Keep the elements of largest magnitude, set the others to 0.

    All elements of a magnitude of at least the k-th largest are kept, k = max(1, floor(ρ n)); so
    equal magnitudes are kept or dropped together, and order plays no part. A density of 0 keeps
    nothing.
    """
    if density >= 1:
        return delta
    magnitude = abs(delta)
    if density == 0:
        return ops.only(ops.less(magnitude, 0.0), delta)
    threshold = ops.kth_largest(magnitude, kept_count(density, delta.numel()))
    return ops.only(ops.at_least(magnitude, threshold), delta)


def l1_ratio(before: float, after: float) -> tuple[float, ...]:
    """Return the factor that restores a sum of magnitudes; 1 where one of the two is below 1e-7."""
    if before < L1_FLOOR or after < L1_FLOOR:
        return (1.0,)
    return (before / after,)


def restore_l1(kept: T, delta: T) -> T:
    """Scale what was kept of a delta so that its L1 norm is the delta's again."""
    (scale,) = ops.scalars(l1_ratio, ops.total_of(abs(delta)), ops.total_of(abs(kept)), size=1)
    return kept * scale


def float32_sum(values: Sequence[float]) -> float:
    """Return the sum of numbers as float32 adds them.

    Tensors are multiplied by weights that are rounded to float32, so this is what a weighted sum
    has to be divided by.
    """
    total = 0.0
    for value in values:
        total = _as_float32(total + _as_float32(value))
    return total


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        raise ValueError(f"the weights reach {value:g}, beyond what float32 holds") from None


def weighted_sum(deltas: Sequence[T], weights: Sequence[float], normalize: bool) -> T:
    """Return Σ w_i d_i, over Σ w_i if `normalize` (a sum below 1e-8 in magnitude counts as 1)."""
    total = ops.add_all([weight * delta for weight, delta in zip(weights, deltas, strict=True)])
    if not normalize:
        return total
    divisor = float32_sum(weights)
    return total / (divisor if abs(divisor) >= WEIGHT_FLOOR else 1.0)


def agreeing_sum(deltas: Sequence[T], weights: Sequence[float], normalize: bool) -> T:
    """Elect a sign at each position and add the weighted deltas that have it.

    The sign is that of Σ y_i with y_i = w_i d_i, and a sum of 0 elects plus. With `normalize` the
    result is divided by the sum of the weights that took part (0 counts as 1). Yadav et al., 2023
    (arXiv:2306.01708), section 3.2, as mergekit computes it.
    """
    weighted = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    total = ops.add_all(weighted)
    agree = [ops.agrees(y, total) for y in weighted]
    merged = ops.add_all([ops.only(mask, y) for mask, y in zip(agree, weighted, strict=True)])
    if not normalize:
        return merged
    divisor = ops.add_all([ops.ones(mask) * w for mask, w in zip(agree, weights, strict=True)])
    if min(weights) >= _SMALLEST_NORMAL:
        # Where any weight took part the divisor is at least the smallest; elsewhere merged is 0.
        return merged / ops.no_less(divisor, min(weights))
    is_zero = ops.both(ops.at_least(divisor, 0.0), ops.opposite(ops.greater(divisor, 0.0)))
    return merged / (divisor + ops.ones(is_zero))

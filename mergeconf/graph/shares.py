"""Probabilities as integers: what a 16-bit draw is compared with. Knows no tensor."""

from __future__ import annotations

import math

RESOLUTION = 1 << 16
"""A draw is uniform over the integers from 0 to one below this."""
MOST_SHARES = (1 << 15) - 1
"""Largest sum of shares: it fits a signed 16-bit integer."""


def threshold_of(probability: float) -> int:
    """Return the integer T such that a draw is below T with the probability given, rounded.

    A probability above 0 never becomes 0, and one below 1 never becomes 1.
    """
    rounded = round(probability * RESOLUTION)
    if 0 < probability < 1:
        return min(max(rounded, 1), RESOLUTION - 1)
    return rounded


def rank_threshold(density: float, epsilon: float, twice: int, row: int) -> int:
    """Return the integer for a draw whose probability depends on a rank within a row.

    p = density + epsilon · ((twice − (row − 1)) / (row − 1)), in float64 in this order, `twice`
    being the sum of the lowest and the highest rank, from 0, of the elements of equal value; p is
    `density` where a row has one element. The integer is p · 65,536, rounded to nearest, ties to
    even, from 1 to 65,535.
    """
    last = row - 1
    offset = (twice - last) / last if last > 0 else 0.0
    rounded = round((density + epsilon * offset) * RESOLUTION)
    return min(max(rounded, 1), RESOLUTION - 1)


def shares_of(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return integers in proportion to weights, for `Pick`: sum at most 32,767.

    Equal weights give 1 each; others are rounded to multiples of about 2^-15 of the sum, and a
    weight above 0 never becomes 0.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """
    total = sum(weights)
    if min(weights) < 0:
        raise ValueError("weights are shares here and cannot be negative")
    if total <= 0:
        raise ValueError("all weights are zero; at least one must be more")
    positive = {weight for weight in weights if weight > 0}
    if len(positive) == 1:
        return tuple(int(weight > 0) for weight in weights)
    # A power of two brings them near 1, so that no sum or quotient overflows.
    near = [math.ldexp(weight, -math.frexp(max(weights))[1]) for weight in weights]
    scale = (MOST_SHARES - len(weights)) / sum(near)
    return tuple(
        max(1, round(x * scale)) if w > 0 else 0 for x, w in zip(near, weights, strict=True)
    )

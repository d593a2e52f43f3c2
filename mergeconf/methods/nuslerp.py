"""Spherical interpolation of two models, or of their deltas, by weights."""

from __future__ import annotations

import math
from typing import Any

from mergeconf.graph import ops
from mergeconf.methods._span import all_finite, clamp_cosine
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import PerModel, merge_method

NORM_FLOOR = 1e-7
"""A tensor of a smaller norm is divided by this instead."""
COLLINEAR = 2.0**-25
"""Two directions whose cosine is this near to 1 or −1 count as one line: where float32, in which
mergekit compares, rounds the cosine to 1."""
WEIGHT_FLOOR = 1e-6
"""Weights with a smaller sum (in magnitude) tell nothing: t is 0.5."""


def nuslerp_coefficients(aa: float, ba: float, bb: float, t: float) -> tuple[float, float]:
    """Return the coefficients of the two tensors, from their dot products."""
    if not all_finite((aa, ba, bb)):
        return math.nan, math.nan
    norms = [max(math.sqrt(square), NORM_FLOOR) for square in (aa, bb)]
    cosine = clamp_cosine(ba / norms[0] / norms[1])
    if 1 - abs(cosine) <= COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@merge_method(base="optional", models=(2, 2), source="", laws={"identity", "base_identity"})
def nuslerp(
    base: Any,
    first: Any,
    second: Any,
    *,
    weight: PerModel = (1.0,),
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Any:
    """Spherical interpolation of two models, or of their deltas if there is a base, per tensor.

    t = w_2 / (w_1 + w_2), or 0.5 if |w_1 + w_2| < 1e-6. With φ the angle between the two flattened
    tensors x_1 and x_2, the result is sin((1−t)φ)/sin φ · x_1 + sin(tφ)/sin φ · x_2, plus the base
    if x are deltas; where they are collinear it is (1−t) x_1 + t x_2. A tensor of norm 0 counts as
    at a right angle to the other. Without `nuslerp_flatten` this is done for each row by itself, a
    row being the last dimension, or all of a tensor that has no second one.

    Shoemake, 1985, "Animating rotation with quaternion curves", as mergekit's NuSLERP has it.
    Collinear means |cos φ| ≥ 1 − 2^-25, which is what mergekit's test comes to in float32.
    `nuslerp_row_wise`, which has an effect only without `nuslerp_flatten`, is mergekit's name for
    interpolating each column by itself: a vector along the first dimension for each position of all
    others. For a tensor of one dimension that is the same. A column of a matrix that has a value of
    2^30 or more in magnitude has no result.
    """
    total = sum(weight)
    t = 0.5 if abs(total) < WEIGHT_FLOOR else weight[1] / total
    vectors = [first, second] if base is None else deltas_of(base, [first, second])
    if nuslerp_flatten:
        coefficients = ops.scalars(nuslerp_coefficients, *ops.gram(vectors), size=2, options=(t,))
        merged = ops.combine(vectors, coefficients)
    elif nuslerp_row_wise and len(first.shape) > 1:
        merged = ops.combine_columns(vectors, vectors, nuslerp_coefficients, (t,))
    else:
        merged = ops.combine_rows(vectors, vectors, nuslerp_coefficients, (t,))
    return merged if base is None else base + merged

"""Spherical linear interpolation of two models."""

from __future__ import annotations

import math
from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods.registry import Bounds, merge_method

NORM_FLOOR = 1e-8
"""A tensor of a smaller norm is not divided by it."""
COLLINEAR = 0.9995
"""From this cosine on the two directions count as one."""


def slerp_coefficients(aa: float, ab: float, bb: float, t: float) -> tuple[float, float]:
    """Return the coefficients of a and b, from their dot products."""
    norms = [norm if norm > NORM_FLOOR else 1.0 for norm in (math.sqrt(aa), math.sqrt(bb))]
    cosine = ab / norms[0] / norms[1]
    # written so that a NaN, from weights that are not finite, goes on into the result
    if abs(cosine) > COLLINEAR or math.isnan(cosine):
        return (1 - t) + 0 * cosine, t + 0 * cosine
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@merge_method(models=(1, 1), source="", laws={"identity"})
def slerp(base: Any, other: Any, *, t: Annotated[float, Bounds(0, 1)]) -> Any:
    """Spherical interpolation from the base (t = 0) to the other model (t = 1), per tensor.

    With a and b the two flattened tensors and φ the angle between them, the result is
    sin((1−t)φ)/sin φ · a + sin(tφ)/sin φ · b; where |cos φ| > 0.9995 it is (1−t) a + t b.
    Shoemake, 1985, "Animating rotation with quaternion curves", as mergekit computes it: the angle
    is taken between normalized tensors, the sum over the tensors as they are.
    """
    aa, ab, bb = ops.dot(base, base), ops.dot(base, other), ops.dot(other, other)
    coefficients = ops.scalars(slerp_coefficients, aa, ab, bb, size=2, options=(t,))
    return ops.combine([base, other], coefficients)

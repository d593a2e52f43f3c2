"""Move each parameter of the base towards another model's, all the way where they are near."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods.registry import Bounds, merge_method

DISTANCE_FLOOR = 1e-6
"""A smaller distance counts as this."""


@merge_method(
    models=(1, 1),
    source="",
    ignored={"weight": "nearswap has no weights: t says how far the base is moved"},
    laws={"identity", "base_identity", "between"},
)
def nearswap(base: Any, other: Any, *, t: Annotated[float, Bounds(0)]) -> Any:
    """Move each parameter of the base towards the other model's by about `t`, at most onto it.

    k = min(1, t / max(|θ0 − θ|, 1e-6)), and the result is k θ + (1 − k) θ0, for each element by
    itself: parameters that differ by no more than `t` are taken from the other model.

    Alchemonaut, QuartetAnemoi-70B-t0.0001 (a model card), as mergekit computes it.
    """
    distance = ops.no_less(abs(base - other), DISTANCE_FLOOR)
    share = ops.at_most(ops.reciprocal(distance) * t, 1.0)
    return ops.combine([share * other, ((-share) + 1.0) * base], [1.0, 1.0])

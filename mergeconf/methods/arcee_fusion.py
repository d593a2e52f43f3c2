"""Take what has changed most, where the model's rows have moved most."""

from __future__ import annotations

from typing import Any

from mergeconf.graph import ops
from mergeconf.methods.registry import merge_method

SPREADS = 1.5
"""How many interquartile ranges above the median the threshold lies."""


def fusion_threshold(first: float, median: float, third: float) -> tuple[float]:
    """Return the threshold, from the quartiles."""
    return (median + SPREADS * (third - first),)


@merge_method(
    models=(1, 1),
    source="",
    ignored={"weight": "arcee_fusion takes parameters from one model or the other"},
    laws={"identity", "base_identity", "between"},
)
def arcee_fusion(base: Any, other: Any) -> Any:
    """Take each parameter from the other model where its change is important, else from the base.

    The importance of an element is |θ − θ0| · KL(softmax θ ‖ softmax θ0), the softmaxes taken over
    its row (the last dimension). θ is taken where the importance is at least the median plus 1.5
    interquartile ranges of all importances in the tensor, else θ0. The quartiles are the elements
    number floor(q (n − 1)) in ascending order, from 0.

    Arcee Fusion, as mergekit computes it, but for three things: the quartiles are exact (mergekit
    samples a million elements of larger tensors, without a seed); the divergence is computed in
    float64 (in float32 the rounding is as large as the divergence of usual fine-tunes), without
    the 1e-8 that mergekit adds to every probability; and θ is taken as it is, in the output's
    format. A model equal to the base in a row has importance 0 there.
    """
    importance = abs(other - base) * ops.divergence_of_rows(other, base)
    last = base.numel() - 1
    ranks = (last // 4, last // 2, 3 * last // 4)
    quartiles = [ops.kth_largest(importance, base.numel() - rank) for rank in ranks]
    (threshold,) = ops.scalars(fusion_threshold, *quartiles, size=1)
    return ops.where(ops.at_least(importance, threshold), other, base)

"""Drop and rescale: the part that both DARE methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mergeconf.graph import ops
from mergeconf.graph.shares import RESOLUTION, threshold_of
from mergeconf.methods._task_vectors import restore_l1

RescaleBy = Literal["l1_norm", "inverse_density"]


def drop_and_rescale(
    deltas: Sequence[Any], density: Sequence[float], rescale: bool, rescale_by: RescaleBy
) -> list[Any]:
    """Keep each element of each delta with probability `density`, and make up for the loss."""
    results = []
    for model, (delta, share) in enumerate(zip(deltas, density, strict=True)):
        if share >= 1:
            results.append(delta)
            continue
        kept = ops.only(ops.bernoulli(delta, share, "dare", model), delta)
        if rescale and rescale_by == "inverse_density" and share > 0:
            # by the probability that is drawn with, a multiple of 2^-16
            kept = kept / (threshold_of(share) / RESOLUTION)
        elif rescale:
            kept = restore_l1(kept, delta)
        results.append(kept)
    return results

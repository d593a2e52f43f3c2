"""Trim, elect sign, merge."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.methods._task_vectors import agreeing_sum, deltas_of, restore_l1, trim
from mergeconf.methods.registry import Bounds, PerModel, merge_method


@merge_method(source="arXiv:2306.01708", laws={"base_identity", "order"})
def ties(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Bounds(0, 1)] = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Trim small deltas, elect a sign per parameter, and merge the deltas that agree with it.

    Each delta keeps the share `density` of its elements that is largest in magnitude, per tensor:
    those of at least the k-th largest magnitude, k = max(1, floor(density · n)), and none of them
    where the density is 0. With y_i the
    trimmed deltas times their weights, s = sign Σ y_i (0 counts as plus), the result is
    θ0 + λ Σ y_i[sign y_i = s] / Σ w_i[sign y_i = s]; without `normalize` it is not divided.
    `rescale` restores each trimmed delta's L1 norm.

    Yadav et al., 2023, "TIES-merging" (arXiv:2306.01708). As in mergekit weights come before the
    election of signs. Where several magnitudes equal the threshold all of them are kept (mergekit
    keeps an arbitrary choice of them, so that exactly k are left).
    """
    deltas = deltas_of(base, models)
    trimmed = [trim(delta, share) for delta, share in zip(deltas, density, strict=True)]
    if rescale:
        trimmed = [
            restore_l1(kept, delta) if share < 1 else kept
            for kept, delta, share in zip(trimmed, deltas, density, strict=True)
        ]
    return base + agreeing_sum(trimmed, weight, normalize) * lambda_

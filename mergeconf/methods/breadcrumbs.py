"""Model breadcrumbs: drop the smallest and the largest changes, add the rest."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.methods._breadcrumbs import drop_tails
from mergeconf.methods._task_vectors import deltas_of, weighted_sum
from mergeconf.methods.registry import Bounds, PerModel, merge_method


@merge_method(source="arXiv:2312.06795", laws={"base_identity", "order", "zero_weight"})
def breadcrumbs(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Bounds(0, 1)] = (1.0,),
    gamma: Annotated[PerModel, Bounds(0, 1)] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Drop the largest and the smallest elements of the deltas, and add the rest to the base.

    Of the n elements of each delta, sorted by magnitude, the floor(gamma · n) largest are dropped
    as outliers, then floor(density · n) are kept and the smaller ones dropped; fewer outliers are
    dropped where otherwise too few would be left. A density of 1 keeps everything, outliers
    included. `rescale` restores the L1 norm of the delta. The result is θ0 + λ Σ w_i d'_i,
    divided by Σ w_i if `normalize`.

    Davari and Belilovsky, 2023, "Model breadcrumbs" (arXiv:2312.06795), with the parameters of
    mergekit, in which the two shares that are dropped add up to 1 − density. Elements of equal
    magnitude are treated alike: those equal to the largest or the smallest kept magnitude are all
    kept (mergekit keeps an arbitrary choice of them, so that exactly floor(density · n) are left).
    """
    deltas = drop_tails(deltas_of(base, models), density, gamma, rescale)
    return base + weighted_sum(deltas, weight, normalize) * lambda_

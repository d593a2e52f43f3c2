"""Model breadcrumbs with an election of signs."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.methods._breadcrumbs import drop_tails
from mergeconf.methods._task_vectors import agreeing_sum, deltas_of
from mergeconf.methods.registry import Bounds, PerModel, merge_method


@merge_method(source="arXiv:2312.06795", laws={"base_identity", "order"})
def breadcrumbs_ties(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Bounds(0, 1)] = (1.0,),
    gamma: Annotated[PerModel, Bounds(0, 1)] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Drop the largest and smallest elements of the deltas, and merge those that agree in sign.

    Elements are dropped as in `breadcrumbs`: the floor(gamma · n) largest, then all but the
    floor(density · n) next, by magnitude, per tensor. Signs are then elected and the deltas merged
    as in `ties`: θ0 + λ Σ y_i[sign y_i = s], y_i = w_i d'_i, divided by Σ w_i[sign y_i = s] if
    `normalize`.

    Davari and Belilovsky, 2023, "Model breadcrumbs" (arXiv:2312.06795), and Yadav et al., 2023,
    "TIES-merging" (arXiv:2306.01708), joined as in mergekit. Elements of equal magnitude are
    treated alike: those equal to the largest or the smallest kept magnitude are all kept.
    """
    deltas = drop_tails(deltas_of(base, models), density, gamma, rescale)
    return base + agreeing_sum(deltas, weight, normalize) * lambda_

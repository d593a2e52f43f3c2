"""DELLA: drop by rank, elect signs, merge."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.methods._della import drop_by_rank
from mergeconf.methods._task_vectors import agreeing_sum, deltas_of
from mergeconf.methods.registry import Bounds, PerModel, merge_method


@merge_method(source="arXiv:2406.11617", laws={"base_identity"})
def della(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Bounds(0, 1)] = (1.0,),
    epsilon: Annotated[PerModel, Bounds(0, 0.5, open_high=True)] = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Any:
    """Drop small changes more often than large ones, rescale, and merge those that agree in sign.

    Within each row of a delta (its last dimension) elements are ranked by magnitude, r going from
    0 for the smallest to 1 for the largest; an element is kept with probability
    (density − epsilon) + 2 · epsilon · r, which has to lie inside (0, 1). A density of 1 keeps all
    and 0 none. `rescale` restores the L1 norm that each delta had. Signs are then elected and the
    deltas merged as in `ties`: θ0 + λ Σ y_i[sign y_i = s], y_i = w_i d'_i, divided by
    Σ w_i[sign y_i = s] if `normalize`.

    Deep et al., 2024, "DELLA-Merging" (arXiv:2406.11617), as mergekit computes it: the paper
    divides each kept element by its probability. Elements of equal magnitude share the mean of
    their ranks (mergekit gives them different ranks, in an arbitrary order), and a row of one
    element is kept with probability `density` (mergekit fails there). Of a tensor of more than two
    dimensions, too, rows run along the last one (mergekit ranks along the second one).

    Raises:
        ValueError: density − epsilon or density + epsilon is not inside (0, 1).
    """
    deltas = drop_by_rank(deltas_of(base, models), density, epsilon, rescale)
    return base + agreeing_sum(deltas, weight, normalize) * lambda_

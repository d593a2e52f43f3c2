"""DARE with an election of signs."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.methods._dare import RescaleBy, drop_and_rescale
from mergeconf.methods._task_vectors import agreeing_sum, deltas_of
from mergeconf.methods.registry import Bounds, PerModel, merge_method


@merge_method(source="arXiv:2311.03099", laws={"base_identity"})
def dare_ties(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Bounds(0, 1)] = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: RescaleBy = "l1_norm",
    lambda_: float = 1.0,
) -> Any:
    """Randomly drop elements of the deltas, rescale the rest, and merge those that agree in sign.

    Each element of each delta is kept with probability `density`, independently. `rescale` makes
    up for what was dropped: by the ratio of the tensor's L1 norms before and after (`l1_norm`,
    mergekit's way and the default), or by 1 / density (`inverse_density`, the paper's way).
    Signs are then elected and the deltas merged as in `ties`: θ0 + λ Σ y_i[sign y_i = s] with
    y_i = w_i d'_i, divided by Σ w_i[sign y_i = s] if `normalize`.

    Yu et al., 2024, "Language models are super Mario" (arXiv:2311.03099).
    """
    deltas = drop_and_rescale(deltas_of(base, models), density, rescale, rescale_by)
    return base + agreeing_sum(deltas, weight, normalize) * lambda_

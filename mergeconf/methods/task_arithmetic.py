"""Weighted sum of deltas, added to the base."""

from __future__ import annotations

from typing import Any

from mergeconf.methods._task_vectors import deltas_of, weighted_sum
from mergeconf.methods.registry import PerModel, merge_method


@merge_method(source="arXiv:2212.04089", laws={"base_identity", "order", "zero_weight"})
def task_arithmetic(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Any:
    """Weighted sum of the models' deltas, added to the base.

    θ0 + λ Σ w_i (θ_i − θ0), the sum divided by Σ w_i if `normalize`. Ilharco et al., 2023,
    "Editing models with task arithmetic" (arXiv:2212.04089).
    """
    return base + weighted_sum(deltas_of(base, models), weight, normalize) * lambda_

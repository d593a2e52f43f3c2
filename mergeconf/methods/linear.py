"""Weighted average."""

from __future__ import annotations

from typing import Any

from mergeconf.graph import ops
from mergeconf.methods._task_vectors import float32_sum
from mergeconf.methods.registry import PerModel, merge_method


@merge_method(base="unused", source="arXiv:2203.05482", laws={"identity", "order", "between"})
def linear(*models: Any, weight: PerModel = (1.0,), normalize: bool = True) -> Any:
    """Weighted average of the models.

    Σ w_i θ_i, divided by Σ w_i if `normalize` (the default). Wortsman et al., 2022, "Model soups"
    (arXiv:2203.05482), is the case of equal weights. A base model is no extra input: list it under
    `models` if it is to take part.

    Raises:
        ValueError: the weights sum to 0, and are to be normalized.
    """
    total = ops.combine(models, weight)
    if not normalize:
        return total
    weights = float32_sum(weight)
    if weights == 0:
        raise ValueError("the weights sum to 0, so they cannot be normalized")
    return total / weights

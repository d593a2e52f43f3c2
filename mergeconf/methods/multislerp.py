"""Spherical interpolation of any number of models."""

from __future__ import annotations

import math
from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods._span import all_finite, matrix_of, norm_of, norms_of
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import Bounds, PerModel, merge_method

NOISE = 1e-6
"""A mean direction this short, beside what it is the sum of, is rounding noise."""


def multislerp_coefficients(*numbers: float) -> tuple[float, ...]:
    """Return a coefficient for each tensor: from the Gram matrix, then the weights, then eps."""
    eps = numbers[-1]
    count = (math.isqrt(8 * len(numbers) + 1) - 3) // 2
    weights, lower = numbers[-1 - count : -1], numbers[: -1 - count]
    if not all_finite(lower):
        return (math.nan,) * count
    gram = matrix_of(lower)
    norms = norms_of(gram)
    if not any(norms):
        return (0.0,) * count
    directions = [
        weight / (norm + eps) if norm > 0 else 0.0
        for weight, norm in zip(weights, norms, strict=True)
    ]
    mean_norm = norm_of(directions, gram)
    longest = sum(abs(c) * norm for c, norm in zip(directions, norms, strict=True))
    if mean_norm <= max(eps, NOISE) * longest:
        if count == 2:
            return weights
        raise ValueError(
            "the weighted directions of the tensors sum to zero, so they have no mean; change the "
            "weights, or leave out models whose tensors are opposite"
        )
    length = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    scale = length * math.cos(eps) / mean_norm
    return tuple(direction * scale for direction in directions)


@merge_method(
    base="optional",
    source="",
    ignored={"normalize": "the parameter of multislerp is called normalize_weights"},
    laws={"identity", "base_identity", "order"},
)
def multislerp(
    base: Any,
    *models: Any,
    weight: PerModel = (1.0,),
    normalize_weights: bool = True,
    eps: Annotated[float, Bounds(0, 1)] = 1e-8,
) -> Any:
    """Weighted mean direction of the models, with their weighted mean length, per tensor.

    With û_i = θ_i / (‖θ_i‖ + eps), m the unit vector along Σ w_i û_i, and
    v = Σ w_i (û_i − (û_i·m) m), the result is (m cos‖v‖ + v sin‖v‖ / ‖v‖) · Σ w_i ‖θ_i‖. The
    tangent v is 0 by the definition of m, whatever the inputs, so what is computed is
    m · Σ w_i ‖θ_i‖. With a base the same is done with the deltas, and the base is added. Weights
    are divided by their sum if `normalize_weights`. A single model is returned as it is.

    Goddard, "Multi-SLERP" (goddard.blog, the method of mergekit). There v is rounding noise, and
    a factor cos(eps) comes in, which is kept here. Where directions cancel, so that
    ‖Σ w_i û_i‖ ≤ max(eps, 1e-6) · Σ |w_i| ‖û_i‖ (mergekit: < eps), two models are combined
    linearly and more are refused; tensors that are all zero give zero (mergekit refuses three or
    more of these).

    Raises:
        ValueError: the weights sum to 0 and are to be normalized; or, when weights are read, the
            directions of three or more models cancel.
    """
    if len(models) == 1:
        return models[0]
    weights = list(weight)
    if normalize_weights:
        total = sum(weights)
        if total == 0:
            raise ValueError("the weights sum to 0, so they cannot be normalized")
        weights = [value / total for value in weights]
    vectors = list(models) if base is None else deltas_of(base, models)
    coefficients = ops.scalars(
        multislerp_coefficients, *ops.gram(vectors), *weights, eps, size=len(vectors)
    )
    merged = ops.combine(vectors, coefficients)
    return merged if base is None else base + merged

"""Karcher mean of models on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods._span import (
    Matrix,
    all_finite,
    along,
    clamp_cosine,
    matrix_of,
    norm_of,
    norms_of,
)
from mergeconf.methods.registry import Bounds, merge_method

_OPPOSITE = 1e-7
"""An angle this near to π has no direction to go in."""


def karcher_coefficients(*numbers: float) -> tuple[float, ...]:
    """Return a coefficient for each tensor: from the Gram matrix, max_iter and tol."""
    *lower, max_iter, tol = numbers
    gram = matrix_of(lower)
    count = len(gram)
    if not all_finite(lower):
        return (math.nan,) * count
    norms = norms_of(gram)
    valid = [index for index, norm in enumerate(norms) if norm > tol]
    if not valid:
        return (0.0,) * count
    cosines = [[gram[i][j] / norms[i] / norms[j] for j in valid] for i in valid]
    mean = unit_mean(cosines, int(max_iter), tol)
    length = sum(norms) / count
    result = [0.0] * count
    for index, coefficient in zip(valid, mean, strict=True):
        result[index] = length * coefficient / norms[index]
    return tuple(result)


def unit_mean(cosines: Matrix, max_iter: int, tol: float) -> list[float]:
    """Return the Karcher mean of unit vectors, as coefficients, from their dot products."""
    count = len(cosines)
    mean = [1 / count] * count
    norm = norm_of(mean, cosines)
    if norm < tol or norm == 0:
        mean = [1.0] + [0.0] * (count - 1)
    else:
        mean = [value / norm for value in mean]
    for _ in range(max_iter):
        tangent = _tangent(mean, cosines, tol)
        step = norm_of(tangent, cosines)
        if step < tol or step == 0:
            break
        mean = [
            math.cos(step) * x + math.sin(step) / step * y
            for x, y in zip(mean, tangent, strict=True)
        ]
        norm = norm_of(mean, cosines)
        if norm > tol:
            mean = [value / norm for value in mean]
    return mean


def _tangent(mean: Sequence[float], cosines: Matrix, tol: float) -> list[float]:
    """Return the mean of the directions to the unit vectors, each as long as its angle."""
    share = 1 / len(cosines)
    tangent = [0.0] * len(cosines)
    for index, row in enumerate(cosines):
        cosine = clamp_cosine(along(mean, row))
        angle = math.acos(cosine)
        if angle < tol or angle == 0 or angle > math.pi - _OPPOSITE:
            continue
        factor = share * angle / math.sin(angle)
        tangent = [t - factor * cosine * x for t, x in zip(tangent, mean, strict=True)]
        tangent[index] += factor
    return tangent


@merge_method(
    base="unused",
    source="arXiv:2603.04972",
    ignored={"weight": "all models count alike in the Karcher mean"},
    laws={"identity", "order"},
)
def karcher(
    *models: Any,
    max_iter: Annotated[int, Bounds(0, 10_000)] = 10,
    tol: Annotated[float, Bounds(0, 1)] = 1e-5,
) -> Any:
    """Karcher mean: the point on the sphere with the least squared angle to all models.

    With û_i = θ_i / ‖θ_i‖, the mean m begins as the unit vector along Σ û_i and is moved along
    T = 1/N Σ φ_i / sin φ_i · (û_i − cos φ_i · m), φ_i being the angle from m to û_i, by
    m ← m cos‖T‖ + T / ‖T‖ · sin‖T‖, at most `max_iter` times or until ‖T‖ < `tol`. The result is
    m times the mean norm. Tensors of norm up to `tol` have no direction and count only in the
    mean norm; angles below `tol` are left out of T. Where Σ û_i vanishes, m begins at the first
    tensor.

    arXiv:2603.04972, as mergekit computes it, but on the matrix of dot products in float64: all
    iterations together cost no sweep over the tensors. A tensor exactly opposite to m tells no
    direction and is left out of T. A base model is no extra input: list it under `models` if it
    is to take part (mergekit adds it without being told).
    """
    if len(models) == 1:
        return models[0]
    coefficients = ops.scalars(
        karcher_coefficients, *ops.gram(models), size=len(models), options=(max_iter, tol)
    )
    return ops.combine(models, coefficients)

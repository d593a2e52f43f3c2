"""Geometry in the span of the inputs: scalars from a Gram matrix, in float64.

Spherical methods give a linear combination of their inputs, whose coefficients depend on dot
products alone. So one sweep finds the Gram matrix, the rest is plain Python on a few numbers, and
a second sweep combines. Nothing here knows a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Number = Any
"""A float, or a float64 array of one number a row."""
Matrix = list[list[Number]]


def matrix_of(lower: Sequence[Number]) -> Matrix:
    """Return the symmetric matrix whose lower triangle is given by rows, as `ops.gram` does."""
    size = math.isqrt(2 * len(lower))
    return [
        [lower[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(size)]
        for i in range(size)
    ]


def norm_of(coefficients: Sequence[float], gram: Matrix) -> float:
    """Return the norm of the vector that has these coefficients."""
    square = 0.0
    for c, row in zip(coefficients, gram, strict=True):
        square += c * along(coefficients, row)
    return math.sqrt(max(square, 0.0))  # rounding may leave a little less than 0


def along(coefficients: Sequence[float], row: Sequence[float]) -> float:
    """Return the dot product of a vector, given by coefficients, with the input of this row."""
    total = 0.0
    for c, product in zip(coefficients, row, strict=True):
        total += c * product
    return total


def norms_of(gram: Matrix) -> list[float]:
    """Return the norms of the inputs."""
    return [math.sqrt(row[i]) for i, row in enumerate(gram)]


def each(function: Callable[[float], float], x: Any) -> Any:
    """Return a function of one number, applied to each number of a float64 array.

    Those of `math` are the system's own. numpy has its own ones, for some processors only, whose
    last bit may differ.
    """
    import numpy as np  # not above: recipes are checked without numpy

    return np.reshape([function(value) for value in np.ravel(x).tolist()], np.shape(x))


def clamp_cosine(value: float) -> float:
    """Return the value, brought back to the range from −1 to 1; it is not NaN."""
    return min(max(value, -1.0), 1.0)


def all_finite(values: Sequence[float]) -> bool:
    """Tell whether neither NaN nor infinity is among the values.

    Where it is, an input holds one, and methods give NaN for all coefficients, so that the result
    shows it everywhere and a run refuses it.
    """
    return all(map(math.isfinite, values))

"""Interpolation between the base and the mean model, by the angles between deltas."""

from __future__ import annotations

import math
from typing import Any

from mergeconf.graph import ops
from mergeconf.methods._span import each, matrix_of
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import merge_method

NORM_FLOOR = 1e-6
"""The product of two norms is taken to be at least this."""
SINGULAR = 1e-6
"""A smaller denominator of t means that there is no estimate: the base is kept."""


@ops.takes_arrays
def stock_shares(*numbers: Any) -> tuple[Any, Any]:
    """Return the shares of the mean model and the base: from the Gram matrix and mean_angle."""
    *lower, mean_angle = numbers
    import numpy as np  # not above: recipes are checked without numpy

    finite = np.logical_and.reduce([np.isfinite(number) for number in lower])
    gram = matrix_of([np.where(finite, number, 0.0) for number in lower])
    norms = [np.sqrt(row[index]) for index, row in enumerate(gram)]
    cosines = [
        np.clip(gram[i][j] / np.maximum(norms[i] * norms[j], NORM_FLOOR), -1.0, 1.0)
        for i in range(len(gram))
        for j in range(i)
    ]
    if mean_angle:
        angles = [each(math.acos, cosine) for cosine in cosines]
        cosine = each(math.cos, ops.add_all(angles) / len(angles))
    else:
        cosine = ops.add_all(cosines) / len(cosines)
    denominator = 1 + (len(gram) - 1) * cosine
    singular = abs(denominator) < SINGULAR
    t = np.where(singular, 0.0, len(gram) * cosine / np.where(singular, 1.0, denominator))
    return np.where(finite, t, math.nan), np.where(finite, 1 - t, math.nan)


@merge_method(
    models=(2, None),
    source="arXiv:2403.19522",
    ignored={
        "weight": "all models count alike in model_stock",
        "normalize": "model_stock finds the weights of the models itself",
    },
    laws={"base_identity", "order"},
)
def model_stock(
    base: Any, *models: Any, filter_wise: bool = False, mean_angle: bool = False
) -> Any:
    """Interpolate between the base and the mean of the models, as far as their deltas agree.

    With c the mean over all pairs of the cosine between two deltas of N models,
    t = N c / (1 + (N − 1) c), and the result is t · mean(θ_i) + (1 − t) · θ0, per tensor. Where
    |1 + (N − 1) c| < 1e-6 there is no estimate and the base is kept. The product of two norms is
    taken to be at least 1e-6 when a cosine is computed, as in mergekit: deltas smaller than that
    pull the tensor towards the base.

    Jang et al., 2024, "Model Stock: all we need is just a few fine-tuned models"
    (arXiv:2403.19522). The authors average angles where mergekit averages cosines: `mean_angle`
    takes c = cos(mean of the angles). With `filter_wise` all this is done for each row by itself,
    a row being the last dimension, or all of a tensor that has no second one.
    """
    deltas = deltas_of(base, models)
    mean = ops.combine(models, [1.0] * len(models)) / float(len(models))
    if filter_wise:
        return ops.combine_rows([mean, base], deltas, stock_shares, (mean_angle,))
    shares = ops.scalars(stock_shares, *ops.gram(deltas), size=2, options=(mean_angle,))
    return ops.combine([mean, base], shares)

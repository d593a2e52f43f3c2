"""By how much does each model move the output? The coefficient of its change, from parameters.

Where models are merged by weights the output moves with model i by c_i times that model's change.
For methods that interpolate on a sphere this holds for models near to each other, as fine-tunes of
one base are.
"""

from __future__ import annotations

from collections.abc import Sequence

from mergeconf.methods import Method, all_methods
from mergeconf.recipe import Decision

ELECTING = frozenset({"ties", "dare_ties", "della", "breadcrumbs_ties"})
"""Methods that divide by the weights of those models that take part at a position."""
_NO_SUM = 1e-8
"""Weights whose sum is below this in magnitude are not divided by it."""


def effects(decision: Decision) -> tuple[float, ...] | None:
    """Return the coefficient of each merged model's change, or None where weights do not tell it.

    A method that drops elements at random or by size and rescales the rest moves those that are
    left by more: what is returned counts for these. Where no base takes part the models' values
    themselves are added, so coefficients are beside their sum, whether the recipe divides or not.
    """
    method = None if decision.method is None else all_methods()[decision.method]
    if method is None or method.copies:
        return None
    values = {resolved.name: resolved.value for resolved in decision.parameters}
    if method.name == "slerp":
        return (float(values["t"]),)
    if not has_weights(method):
        return None
    weights = [float(weight) for weight in values["weight"]]
    densities = [float(density) for density in values.get("density", (1.0,) * len(weights))]
    normalize = values.get("normalize", values.get("normalize_weights", True))
    if method.name in ELECTING and normalize and min(densities) < 1:
        return None  # where one model is left its weight is divided by itself
    strength = float(values.get("lambda", 1.0))
    total = _divisor(weights) if normalize or decision.base is None else 1.0
    rescale = values.get("rescale", False)
    return tuple(
        strength * weight / total / (density if rescale and 0 < density < 1 else 1.0)
        for weight, density in zip(weights, densities, strict=True)
    )


def has_weights(method: Method) -> bool:
    """Tell whether each model has a weight."""
    weight = method.parameters.get("weight")
    return weight is not None and weight.per_model


def _divisor(weights: Sequence[float]) -> float:
    total = sum(weights)
    return total if abs(total) >= _NO_SUM else 1.0

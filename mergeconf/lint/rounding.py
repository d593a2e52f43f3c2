"""How much of the change to the base is left when the output is rounded? Measured on a sample.

Asked only of methods that add weighted deltas as they are, without dropping any: what they add at
an element does not depend on other elements. Where nothing but rounding stands between base and
result, an update smaller than half the distance to the next number vanishes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mergeconf.checkpoint import ReadFiles
from mergeconf.dtypes import DType
from mergeconf.lint.sample import READABLE, read_sample, rounded, spread
from mergeconf.plan import Plan, TensorPlan
from mergeconf.plan.effects import effects

ADDING = frozenset({"task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"})
"""Methods that add weighted deltas, where no density is below 1."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """What is lost, on the sample."""

    dtype: DType
    """Format of the output."""
    lost: float
    """Share of the update's sum of squares at elements that rounding puts back onto the base."""
    elements: float
    """Share of the elements with an update that rounding puts back onto the base."""


def measure_rounding(plan: Plan, reads: ReadFiles) -> Rounding | None:
    """Return what rounding takes from a merge; None where weights alone do not tell the update.

    Raises:
        CheckpointError: a model's files cannot be read.
    """
    lost = total = 0.0
    gone = changed = 0
    dtype = None
    for tensor, coefficients in spread(list(_adding(plan))):
        base, *models = (read_sample(reads, stored).astype(np.float64) for stored in tensor.inputs)
        update = np.zeros_like(base)
        with np.errstate(invalid="ignore", over="ignore"):
            for coefficient, model in zip(coefficients, models, strict=True):
                update += coefficient * (model - base)
        good = np.isfinite(update) & np.isfinite(base) & (update != 0)
        base, update = base[good], update[good]
        vanished = rounded(base + update, tensor.dtype) == rounded(base, tensor.dtype)
        total += float(update @ update)
        lost += float(update[vanished] @ update[vanished])
        changed += update.size
        gone += int(vanished.sum())
        dtype = tensor.dtype
    if dtype is None or not total:
        return None
    return Rounding(dtype, lost / total, gone / changed)


def _adding(plan: Plan) -> Iterator[tuple[TensorPlan, tuple[float, ...]]]:
    """Yield the tensors whose update is a weighted sum of deltas, with the weights."""
    for tensor in plan.tensors:
        decision = tensor.decision
        if decision is None or decision.method not in ADDING or not tensor.numel:
            continue
        plain = all(not (model.merge or model.adapted) for model in (*decision.models,))
        values = {resolved.name: resolved.value for resolved in decision.parameters}
        coefficients = effects(decision)
        if (
            plain
            and coefficients is not None
            and min(values.get("density", (1.0,))) >= 1
            and len(tensor.inputs) == 1 + len(decision.models)
            and all(stored.dtype in READABLE for stored in (*tensor.inputs,))
            and tensor.dtype in READABLE
        ):
            yield tensor, coefficients

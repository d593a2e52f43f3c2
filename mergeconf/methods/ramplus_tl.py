"""Reinforced agent merging in which what a model changed alone is amplified."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods._contributors import changed_masks, contributors
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import Bounds, merge_method


def amplification(shared: float, unique: float, r: float, alpha: float) -> tuple[float, ...]:
    """Return 1 + r · min(shared / unique, alpha), from counts; x / 0 is infinite, 0 / 0 is 0."""
    if unique == 0:
        return (1 + r * (alpha if shared else 0.0),)
    return (1 + r * min(shared / unique, alpha),)


@merge_method(
    source="arXiv:2601.13572",
    ignored={"weight": "all models count alike in ramplus_tl"},
    laws={"base_identity", "order"},
)
def ramplus_tl(
    base: Any,
    *models: Any,
    r: float = 0.1,
    alpha: Annotated[float, Bounds(0)] = 0.2,
    epsilon: Annotated[float, Bounds(0)] = 1e-5,
) -> Any:
    """Mean of the deltas over the models that changed a parameter; unshared changes are amplified.

    As `ram`, but what model i alone changed is multiplied by 1 + r · min(s_i / u_i, alpha). In the
    tensor at hand, u_i parameters were changed by model i alone, and s_i by it and others. A model
    has changed a parameter where its delta is above `epsilon` in magnitude.

    "Reinforced agent merging" (arXiv:2601.13572), RAM+ with counts per tensor, as mergekit
    computes it.
    """
    deltas = deltas_of(base, models)
    changed = changed_masks(deltas, epsilon)
    count = contributors(changed)
    several = ops.greater(count, 1.0)
    terms = []
    for mask, delta in zip(changed, deltas, strict=True):
        shared, unique = ops.both(mask, several), ops.both(mask, ops.opposite(several))
        (factor,) = ops.scalars(
            amplification, ops.count(shared), ops.count(unique), size=1, options=(r, alpha)
        )
        terms.append(ops.only(unique, delta) * factor + ops.only(shared, delta) / count)
    return base + ops.add_all(terms)

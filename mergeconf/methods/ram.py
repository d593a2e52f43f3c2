"""Reinforced agent merging: what one model changed is kept whole, what several changed averaged."""

from __future__ import annotations

from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods._contributors import changed_masks, contributors
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import Bounds, merge_method


@merge_method(
    source="arXiv:2601.13572",
    ignored={"weight": "all models count alike in ram"},
    laws={"base_identity", "order"},
)
def ram(base: Any, *models: Any, epsilon: Annotated[float, Bounds(0)] = 1e-5) -> Any:
    """Mean of the deltas at each parameter over those models that changed it, added to the base.

    A model has changed a parameter where its delta is above `epsilon` in magnitude. With A the
    set of the models that changed it, the result is θ0 + Σ_{i in A} d_i / |A|, and θ0 where none
    did: a change of one model alone is kept whole, changes of several are averaged.

    "Reinforced agent merging" (arXiv:2601.13572), as mergekit computes it. With `epsilon: 0` it
    is what `parameter_selection` with `resample: all` and equal weights gives on average.
    """
    deltas = deltas_of(base, models)
    changed = changed_masks(deltas, epsilon)
    count = contributors(changed)
    terms = [ops.only(mask, delta) / count for mask, delta in zip(changed, deltas, strict=True)]
    return base + ops.add_all(terms)

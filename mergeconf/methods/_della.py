"""Drop by rank and rescale: the part that both DELLA methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeconf.graph import ops
from mergeconf.methods._task_vectors import restore_l1


def drop_by_rank(
    deltas: Sequence[Any], density: Sequence[float], epsilon: Sequence[float], rescale: bool
) -> list[Any]:
    """Keep the elements of each delta with a probability that grows with their rank in the row.

    Raises:
        ValueError: density − epsilon or density + epsilon is not inside (0, 1).
    """
    results = []
    for model, (delta, share, spread) in enumerate(zip(deltas, density, epsilon, strict=True)):
        if share >= 1:
            results.append(delta)
            continue
        if share <= 0:
            results.append(ops.only(ops.less(abs(delta), 0.0), delta))
            continue
        if share - spread <= 0 or share + spread >= 1:
            raise ValueError(
                f"density {share:g} and epsilon {spread:g}: density ± epsilon has to lie "
                "between 0 and 1, both excluded"
            )
        mask = ops.bernoulli_by_rank(abs(delta), share, spread, "della", model)
        kept = ops.only(mask, delta)
        results.append(restore_l1(kept, delta) if rescale else kept)
    return results

"""Select by variance, weight by energy, erase the minority sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from mergeconf.graph import ops
from mergeconf.methods._task_vectors import deltas_of
from mergeconf.methods.registry import Bounds, merge_method

DIVISOR_FLOOR = 1e-6
"""A smaller sum of the weights that take part at a position counts as this."""


def spread(deltas: Sequence[Any]) -> Any:
    """Return N times the variance of the deltas at each position, exactly 0 where all are equal.

    Deviations are taken from the first delta and then from their mean, so that rounding neither
    makes a variance of 0 more than that nor drowns a small one.
    """
    shifted = [delta - deltas[0] for delta in deltas[1:]]
    mean = ops.add_all(shifted) / float(len(deltas))
    deviations = [mean, *(delta - mean for delta in shifted)]
    return ops.add_all([deviation * deviation for deviation in deviations])


def energy_shares(*numbers: float) -> tuple[float, ...]:
    """Return each model's share: from the sums of squares, the number of elements, the floor."""
    *squares, numel, floor = numbers
    means = [square / max(numel, 1) for square in squares]
    total = sum(means)
    if total < floor or total == 0:
        return (1 / len(means),) * len(means)
    return tuple(mean / total for mean in means)


@merge_method(
    source="arXiv:2408.07990",
    ignored={
        "weight": "sce finds the weights of the models itself",
        "density": "sce selects by variance, see select_topk",
        "normalize": "sce always divides by the weights that take part",
        "rescale": "sce does not rescale",
        "lambda": "sce adds the merged delta as it is",
    },
    laws={"base_identity", "order"},
)
def sce(
    base: Any,
    *models: Any,
    select_topk: Annotated[float, Bounds(0, 1)] = 1.0,
    weight_floor: Annotated[float, Bounds(0)] = 1e-6,
) -> Any:
    """Select the elements that vary most, weight models by energy, drop the minority sign.

    Select: of the m positions where the deltas of the N models have a variance above 0, the
    floor(select_topk · m) of largest variance are kept, per tensor; a `select_topk` of 1 keeps
    every position. Calculate: w_i is the mean of d_i² over the tensor, divided by the sum of these
    means over the models; 1/N for all where that sum is below `weight_floor`. Erase: at each
    position the sign of Σ d_i is elected, plus where it is 0. The result is
    θ0 + Σ w_i d_i[sign d_i = s] / max(Σ w_i[sign d_i = s], 1e-6).

    Wan et al., 2024, "FuseChat" (arXiv:2408.07990), as mergekit computes it. The sums of the means
    of usual fine-tunes are below the `weight_floor` of mergekit, 1e-6, which is the default: 0
    weights by energy always, as in the paper. Positions whose variance equals the smallest one
    kept are all kept (mergekit keeps an arbitrary choice of them).
    """
    deltas = deltas_of(base, models)
    if select_topk < 1:
        if len(deltas) == 1:
            return base  # a single delta has no variance anywhere
        variance = spread(deltas)
        threshold = ops.kth_largest_of_nonzero(variance, select_topk)
        selected = ops.at_least(variance, threshold)
        deltas = [ops.only(selected, delta) for delta in deltas]
    weights = ops.scalars(
        energy_shares, *[ops.dot(delta, delta) for delta in deltas],
        size=len(deltas), options=(base.numel(), weight_floor),
    )  # fmt: skip
    total = ops.add_all(deltas)
    agree = [ops.agrees(delta, total) for delta in deltas]
    terms = [
        ops.only(mask, delta * share)
        for mask, delta, share in zip(agree, deltas, weights, strict=True)
    ]
    shares = [ops.ones(mask) * share for mask, share in zip(agree, weights, strict=True)]
    return base + ops.add_all(terms) / ops.no_less(ops.add_all(shares), DIVISOR_FLOOR)

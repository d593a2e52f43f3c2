"""What of a look at the weights is worth a warning?

Limits leave room on both sides: fine-tunes of one base lie at a relative distance of 0.0001 to 0.3
from it, with a cosine near 1; unrelated weights at about √2, with a cosine near 0. In between
nothing is said.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from mergeconf.errors import Problem, listed
from mergeconf.lint.compare import Comparison
from mergeconf.lint.figures import Distance, ModelFigures
from mergeconf.plan import Plan

STRANGE_COSINE = 0.25
"""Weights below this cosine have nothing in common."""
LIKE_SCALE = (0.2, 5.0)
"""Norms beside the base's between which weights may be a stranger's; a tensor that began near 0
and grew in training is none."""
OUTLIER = 10.0
"""Times the others' median distance that a model is an outlier beyond."""
MOST_LOST = 0.5
"""Share of the update, as a sum of squares, above which it is reported as lost to rounding."""
_SHOWN = 3


def findings(comparison: Comparison, plan: Plan) -> tuple[Problem, ...]:
    """Return what is worth a warning, but for what the recipe silences."""
    found = [
        *_not_finite(comparison),
        *_strangers(comparison),
        *_identical(comparison),
        *_outliers(comparison),
        *_lost_to_rounding(comparison, plan),
    ]
    return tuple(problem for problem in found if problem.code not in plan.recipe.silenced)


def strange(figures: ModelFigures) -> list[Distance]:
    """Return the tensors that have nothing in common with the reference's, the furthest first."""
    low, high = LIKE_SCALE
    found = [d for d in figures.telling if d.cosine < STRANGE_COSINE and low < d.scale < high]
    return sorted(found, key=lambda item: -item.relative)


def is_stranger(figures: ModelFigures) -> bool:
    """Tell whether most of a model has nothing in common with the reference."""
    return 2 * len(strange(figures)) > len(figures.telling)


def _warning(figures: ModelFigures, code: str, message: str, hint: str) -> Problem:
    return Problem(message, figures.label, figures.location, hint, "warning", code)


def _not_finite(comparison: Comparison) -> Iterator[Problem]:
    for figures in comparison.figures:
        if figures.not_finite:
            count = sum(figures.not_finite.values())
            yield _warning(
                figures, "not-finite",
                f"{count:,} of the elements looked at are NaN or infinite, in "
                f"{listed(list(figures.not_finite), _SHOWN)}",
                "the model is damaged, or was overflowing when it was stored",
            )  # fmt: skip


def _strangers(comparison: Comparison) -> Iterator[Problem]:
    what = "the base" if comparison.has_base else f"'{comparison.reference}'"
    for figures in comparison.figures[1:]:
        far = strange(figures)
        if not far:
            continue
        worst = listed([f"{item.name} ({item.relative:.2f})" for item in far[:_SHOWN]], _SHOWN)
        if is_stranger(figures):
            yield _warning(
                figures, "not-of-the-base",
                f"is as far from {what} as unrelated weights are: median relative distance "
                f"{figures.median:.2f} (fine-tunes: below 0.3), cosine {figures.cosine:.2f}; "
                f"furthest: {worst}",
                "only models that come from the same weights can be merged element by element",
            )  # fmt: skip
        else:
            yield _warning(
                figures, "not-of-the-base",
                f"{len(far)} of {len(figures.telling)} matrices have nothing in common with those "
                f"of {what}: {worst}",
                "a rule can take or drop them",
            )  # fmt: skip


def _identical(comparison: Comparison) -> Iterator[Problem]:
    for figures in comparison.figures[1:]:
        if not figures.same_as:
            continue
        other = f"'{figures.same_as}'"
        if comparison.has_base and figures.same_as == comparison.reference:
            other = "the base"
        how = "all that is merged" if figures.same_everywhere else "all elements looked at"
        yield _warning(
            figures, "identical-models", f"is identical to {other} in {how}",
            "leave it out, or name the model that was meant",
        )  # fmt: skip


def _outliers(comparison: Comparison) -> Iterator[Problem]:
    related = [
        figures
        for figures in comparison.figures[1:]
        if figures.telling and not is_stranger(figures) and not figures.same_as
    ]
    if not comparison.has_base or len(related) < 3:
        return
    for figures in related:
        others = statistics.median(other.median for other in related if other is not figures)
        if figures.median > OUTLIER * others > 0:
            yield _warning(
                figures, "outlier-model",
                f"is {figures.median / others:.0f} times as far from the base as the other models: "
                f"{figures.median:.3g} beside {others:.3g}",
                "its changes outweigh theirs in a sum: give it a smaller weight",
            )  # fmt: skip


def _lost_to_rounding(comparison: Comparison, plan: Plan) -> Iterator[Problem]:
    rounding = comparison.rounding
    if rounding is None or rounding.lost <= MOST_LOST:
        return
    recipe = plan.recipe
    key = "out_dtype" if recipe.out_dtype else "dtype" if recipe.dtype else ""
    yield Problem(
        f"{rounding.lost:.0%} of the change to the base (its squares; {rounding.elements:.0%} of "
        f"the changed elements) vanish when it is rounded to {rounding.dtype}",
        key,
        recipe.locations.get(key),
        "write 'out_dtype: float32', or larger weights",
        "warning",
        "rounding-swallows",
    )

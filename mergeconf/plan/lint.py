"""What in a plan is allowed, but probably not what its author wants? Asked without reading weights.

Each check is a function that yields what it finds; `mergeconf.codes` says in a line what each code
means. A check that is not sure says nothing: a warning that is wrong costs more than one that is
missing. `mergeconf.lint` looks at the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from mergeconf.errors import Problem
from mergeconf.plan.data import Plan
from mergeconf.plan.lint_licenses import conflicting_licenses
from mergeconf.plan.lint_models import identical_models, self_merge
from mergeconf.plan.lint_tokenizers import differing_tokenizers
from mergeconf.plan.lint_values import empty_densities, lost_range, swallowed_weights

Check = Callable[[Plan], Iterator[Problem]]

CHECKS: Mapping[str, Check] = {
    "weight-swallowed": swallowed_weights,
    "density-keeps-nothing": empty_densities,
    "dtype-loses-range": lost_range,
    "self-merge": self_merge,
    "identical-models": identical_models,
    "tokenizers-differ": differing_tokenizers,
}
"""Checks of every plan, those of merges inside a recipe included, by the code they warn with."""
CHECKS_OF_RESULT: Mapping[str, Check] = {"license-conflict": conflicting_licenses}
"""Checks of the plan whose output is written."""


def lint(plan: Plan, checks: Mapping[str, Check] = CHECKS) -> Plan:
    """Return a plan with what checks find among its warnings, but for what its recipe silences."""
    found = dict.fromkeys(plan.warnings)
    for code, check in checks.items():
        if code not in plan.recipe.silenced:
            found.update(dict.fromkeys(check(plan)))
    return replace(plan, warnings=tuple(found))

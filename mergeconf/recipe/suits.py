"""Does a merge method suit the models of a scope: is there a base, are there enough of them?"""

from __future__ import annotations

from dataclasses import dataclass

from mergeconf.methods import Method, Parameter
from mergeconf.recipe.model import KeyPath, Scope


@dataclass(frozen=True, slots=True)
class Unsuited:
    """Why a method cannot merge the models of a scope."""

    path: KeyPath
    """The key that has to change."""
    message: str
    hint: str = ""
    key: bool = False
    """Whether the place is that of the key, not of its value."""


def is_own(method: Method, parameter: Parameter) -> bool:
    """Tell whether a parameter may be set for one model.

    So may every one of a method that merges a single model (`scale` of passthrough).
    """
    alone = method.base == "unused" and method.max_models == 1
    return parameter.per_model or alone


def takes_base_alone(method: Method, scope: Scope) -> bool:
    """Tell whether there is nothing to merge with a base that has an adapter.

    So people write in order to apply the adapter: the base is taken as it is, as in mergekit.
    """
    base = scope.base_model
    return (
        base is not None
        and "+" in base.text
        and method.base == "required"
        and method.min_models == 1
        and method.max_models is None
        and bool(scope.entries)
        and not scope.merged(method)
    )


def unsuited(method: Method, scope: Scope) -> Unsuited | None:
    """Return why a method cannot merge the models of a scope, or None where it can."""
    if method.base == "required" and scope.base_model is None:
        return Unsuited(
            ("base_model",),
            f"missing, and '{method.name}' needs one",
            "name the model that the others were fine-tuned from",
        )
    if scope.lacks_base(method):
        return Unsuited(
            scope.list_path,
            f"'{method.name}' uses layers of the base, '{scope.base_model}', "
            "and no source is the base",
            "list it as a source, with its layer_range",
        )
    return _miscounted(method, scope)


def _miscounted(method: Method, scope: Scope) -> Unsuited | None:
    if takes_base_alone(method, scope):
        return None
    found = len(scope.merged(method))
    low, high = method.min_models, method.max_models
    if low <= found and (high is None or found <= high):
        return None
    if low == high:
        wanted = f"exactly {low}"
    else:
        wanted = f"at least {low}" if found < low else f"at most {high}"
    one = (low if found < low else high) == 1
    uses_base = method.base != "unused" and scope.base_model is not None
    beside = f" beside the base, '{scope.base_model}'" if uses_base else ""
    return Unsuited(
        scope.list_path,
        f"'{method.name}' needs {wanted} model{'' if one else 's'}{beside}, found {found}",
        key=True,
    )

"""A recipe as plain data in which everything is spelled out: defaults, nested merges, short forms.

Two recipes that ask for the same give the same data, however they are written; nothing in it
depends on where the recipe lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mergeconf.methods import Method, all_methods
from mergeconf.recipe import Matcher, ModelRef, Recipe
from mergeconf.recipe.values import Case, Cases, Constant, Gradient

_NOT_ASKED_FOR = {
    "text", "path", "folder", "name", "metadata", "warnings", "silenced", "locations", "location",
    "range_location", "where", "index",
}  # fmt: skip
"""Fields that say where something stands, or what is printed, not what is computed."""


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data with every default spelled out."""
    found = {
        item.name: _plain(getattr(recipe, item.name))
        for item in fields(recipe)
        if item.name not in _NOT_ASKED_FOR
    }
    found["defaults"] = {
        method.name: {
            parameter.name: _plain(parameter.default)
            for parameter in method.parameters.values()
            if not parameter.required
        }
        for method in methods_of(recipe)
    }
    return found


def methods_of(recipe: Recipe) -> tuple[Method, ...]:
    """Return the methods that a recipe names, each once: its own, then those of its rules."""
    known = all_methods()
    names = [recipe.method, *(rule.method for rule in recipe.rules)]
    return tuple(known[name] for name in dict.fromkeys(names) if name is not None)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Recipe():
            return resolved(value)
        case ModelRef():
            return _model(value)
        case Constant():
            return value.value
        case Gradient():
            return list(value.values)
        case Cases():
            return [_case(case) for case in value.cases]
        case Matcher():
            return _matcher(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case tuple() | list() | frozenset() | set():
            items = sorted(value) if isinstance(value, (frozenset, set)) else value
            return [_plain(item) for item in items]
    assert is_dataclass(value), value
    return {
        item.name: _plain(getattr(value, item.name))
        for item in fields(value)
        if item.name not in _NOT_ASKED_FOR
    }


def _model(model: ModelRef) -> Any:
    if model.merge is not None:
        return {"merge": resolved(model.merge)}
    rest = {
        item.name: _plain(getattr(model, item.name))
        for item in fields(model)
        if item.name not in ("text", "location", "merge") and getattr(model, item.name)
    }
    return {"model": model.text, **rest} if rest else model.text


def _case(case: Case) -> dict[str, Any]:
    return {**_matcher(case.matcher), "value": _plain(case.value)}


def _matcher(matcher: Matcher) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if matcher.match is not None:
        found["match"] = matcher.match.text
    if matcher.layers is not None:
        found["layers"] = matcher.layers.text
    if matcher.filter is not None:
        found["filter"] = matcher.filter
    return found

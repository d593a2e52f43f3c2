"""Is a parameter's value well formed: a constant, a gradient, or a list of cases?

What kind and range a method wants is a later question, answered in `checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from mergeconf.recipe.collect import Collector, dotted
from mergeconf.recipe.patterns import Matcher, parse_layers, parse_pattern
from mergeconf.recipe.schema import ValueCase
from mergeconf.recipe.values import Case, Cases, Constant, Gradient, Value
from mergeconf.recipe.words import BadValue, Scalar, describe
from mergeconf.recipe.yaml_source import Path


def parse_parameters(data: object, path: Path, collector: Collector) -> dict[str, Value]:
    """Return the well-formed values of a `parameters` mapping; the others are noted."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        collector.error(path, f"expected keys and values, found {describe(data)}")
        return {}
    found = {}
    for name, part in data.items():
        value = parse_value(part, (*path, name), collector)
        if value is not None:
            found[name] = value
    return found


def parse_value(data: object, path: Path, collector: Collector) -> Value | None:
    """Return the value at a path, or None where a problem was noted."""
    if isinstance(data, Mapping):
        case = _case(data, path, collector)
        if case is None:
            return None
        return Cases((case,), dotted(path), collector.source.locate(path))
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return _cases(data, path, collector)
    return _plain(data, path, collector)


def parse_matcher(data: Mapping[str, Any], path: Path, collector: Collector) -> Matcher:
    """Return the conditions of a rule or a case; the ill-formed ones are noted."""
    match = layers = None
    if data.get("match") is not None:
        try:
            match = parse_pattern(data["match"])
        except BadValue as error:
            collector.bad((*path, "match"), error)
    if data.get("layers") is not None:
        try:
            layers = parse_layers(data["layers"])
        except BadValue as error:
            collector.bad((*path, "layers"), error)
    condition = data.get("filter")
    if not isinstance(condition, str | None):
        collector.error(
            (*path, "filter"), f"expected text, found {describe(condition)}", "put it in quotes"
        )
        condition = None
    return Matcher(match, layers, condition)


def _plain(data: object, path: Path, collector: Collector) -> Constant | Gradient | None:
    locate = collector.source.locate
    if _is_scalar(data):
        return Constant(data, dotted(path), locate(path))
    if not isinstance(data, list):
        hint = "write a space after the colon" if ":" in str(path[-1]) else ""
        collector.error(path, f"expected a value, found {describe(data)}", hint)
        return None
    if not data:
        collector.error(
            path, "the list is empty", "give a number, or one for each end of the model"
        )
        return None
    wrong = [index for index, item in enumerate(data) if not _is_scalar(item)]
    for index in wrong:
        collector.error((*path, index), f"expected a value, found {describe(data[index])}")
    if wrong:
        return None
    places = tuple(locate((*path, index)) for index in range(len(data)))
    return Gradient(tuple(data), dotted(path), locate(path), places)


def _cases(data: list[Any], path: Path, collector: Collector) -> Cases | None:
    cases: list[Case | None] = []
    for index, item in enumerate(data):
        here = (*path, index)
        if isinstance(item, Mapping):
            cases.append(_case(item, here, collector))
        else:
            cases.append(None)
            collector.error(
                here,
                f"expected 'filter' and 'value', found {describe(item)}",
                "a list holds numbers only, or cases only",
            )
    good = tuple(case for case in cases if case is not None)
    if len(good) < len(cases):
        return None
    return Cases(good, dotted(path), collector.source.locate(path))


def _case(data: Mapping[str, Any], path: Path, collector: Collector) -> Case | None:
    before = len(collector.errors)
    for key in data:
        if key not in ValueCase.model_fields:
            collector.unknown_key((*path, key), ValueCase.model_fields)
    matcher = parse_matcher(data, path, collector)
    value = None
    if "value" in data:
        here = (*path, "value")
        if isinstance(data["value"], list) and any(isinstance(v, dict) for v in data["value"]):
            collector.error(here, "cases inside a case", "write all cases in one list")
        else:
            value = _plain(data["value"], here, collector)
    elif "value" not in collector.meant:
        collector.error((*path, "value"), "missing")
    if value is None or len(collector.errors) > before:
        return None
    return Case(matcher, value, dotted(path), collector.source.locate(path))


def _is_scalar(data: object) -> TypeGuard[Scalar]:
    return isinstance(data, (bool, int, float, str))

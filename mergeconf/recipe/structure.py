"""Has the document the keys and kinds of a recipe? pydantic's findings, in plain words."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mergeconf.errors import did_you_mean
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.schema import Document
from mergeconf.recipe.words import describe
from mergeconf.recipe.yaml_source import Path

_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys and values",
    "model": "keys and values",
    "finite": "a finite number",
}
_HARMLESS = {
    "random_seed": "write 'seed', which every draw follows from",
    "int8_mask": "leave it out: masks take no memory here",
}
"""Keys that published recipes have and that mergekit ignores, with what to do."""
_SEED = "expected a whole number from 0 to 18446744073709551615"


def check_structure(
    data: Mapping[str, Any], parameters: Collection[str], collector: Collector
) -> None:
    """Note every key that a recipe does not have and every value of the wrong kind.

    Args:
        data: The document.
        parameters: Names of all methods' parameters, to tell where a misplaced one belongs.
        collector: Takes the problems.
    """
    try:
        Document.model_validate(data)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            _note(found, parameters, collector)


def _note(found: Any, parameters: Collection[str], collector: Collector) -> None:
    path: Path = tuple(found["loc"])
    kind: str = found["type"]
    value = found["input"]
    if kind == "extra_forbidden":
        _unknown(path, parameters, collector)
    elif kind == "missing":
        _missing(path, collector)
    elif path == ("seed",):
        collector.error(path, f"{_SEED}, found {describe(value)}")
    elif kind == "value_error":
        error = found["ctx"]["error"]
        collector.error(path, str(error), getattr(error, "hint", ""))
    elif kind.partition("_")[0] in _EXPECTED:
        expected = _EXPECTED[kind.partition("_")[0]]
        quotes = expected == "text" and not isinstance(value, (list, dict)) and value is not None
        collector.error(
            path,
            f"expected {expected}, found {describe(value)}",
            "put it in quotes" if quotes else "",
        )
    elif kind == "too_long":
        wanted, given = found["ctx"]["max_length"], found["ctx"]["actual_length"]
        collector.error(path, f"expected {wanted} values, found {given}")
    elif kind == "greater_than":
        collector.error(path, f"expected more than {found['ctx']['gt']}, found {describe(value)}")
    else:
        collector.error(path, f"{describe(value)} does not fit here")


def _unknown(path: Path, parameters: Collection[str], collector: Collector) -> None:
    name = str(path[-1])
    hint = ""
    if len(path) == 1 and name in _HARMLESS:
        collector.warn("ignored-key", path, "has no effect, as in mergekit", _HARMLESS[name])
        return
    misspelled = did_you_mean(name, keys_at(())).startswith("did")
    if len(path) == 1 and not misspelled and collector.source.is_anchored(path):
        return  # a place for what aliases further down repeat
    if name in parameters:
        hint = "a method's parameters go under 'parameters'"
    elif name == "merge_method" and "slices" in path:
        hint = "other methods go by layers: rules: [{layers: 0-7, merge_method: ...}]"
    elif path[0] == "rules" and name == "filter":
        hint = "rules have 'match', a glob on the whole name: match: \"*self_attn*\""
    collector.unknown_key(path, keys_at(path[:-1]), hint)


def _missing(path: Path, collector: Collector) -> None:
    if isinstance(path[-1], int):
        collector.error(path[:-1], f"expected {path[-1] + 1} values, found {path[-1]}")
    elif path[-1] not in collector.meant:
        collector.error(path, "missing")


def keys_at(path: Path) -> tuple[str, ...]:
    """Return the keys that the mapping at a path may have."""
    current: Any = Document
    for part in path:
        model = _model_in(current)
        if model is not None and part in model.model_fields:
            current = model.model_fields[str(part)].annotation
    model = _model_in(current)
    return tuple(model.model_fields) if model else ()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_model_in(part) for part in typing.get_args(annotation))
    return next((model for model in inside if model), None)

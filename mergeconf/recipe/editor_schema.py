"""Which recipe can an editor complete and check while it is typed? The JSON Schema, derived.

Structure comes from the models in `schema`, descriptions from the text below each of their
fields, methods and parameters from the registry of methods.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mergeconf.methods import Method, Parameter, all_methods
from mergeconf.recipe import schema as models

_CASE = {"$ref": "#/$defs/ValueCase"}


def recipe_schema(methods: Mapping[str, Method] | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe with these merge methods."""
    known = all_methods() if methods is None else methods
    found = models.Document.model_json_schema()
    definitions = found["$defs"]
    _describe(definitions)
    definitions["Parameters"] = _parameters(known)
    for part in definitions.values():
        properties = part.get("properties", {})
        if "parameters" in properties:
            _use(properties["parameters"], {"$ref": "#/$defs/Parameters"})
        if "merge_method" in properties:
            _use(properties["merge_method"], _method_names(known))
    definitions["RuleItem"]["allOf"] = [_only_own(method) for method in known.values()]
    _tidy(found)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mergeconf recipe",
        **found,
    }


def _use(field: dict[str, Any], replacement: dict[str, Any]) -> None:
    """Replace what a field may be, other than null."""
    field["anyOf"] = [replacement, {"type": "null"}]


def _method_names(methods: Mapping[str, Method]) -> dict[str, Any]:
    summaries = [method.summary for method in methods.values()]
    return {"type": "string", "enum": list(methods), "enumDescriptions": summaries}


def _only_own(method: Method) -> dict[str, Any]:
    """Allow a rule only the parameters of the method that it names."""
    names = [*method.parameters, *method.ignored]
    return {
        "if": {
            "properties": {"merge_method": {"const": method.name}},
            "required": ["merge_method"],
        },
        "then": {"properties": {"parameters": {"propertyNames": {"enum": names}}}},
    }


def _parameters(methods: Mapping[str, Method]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for method in methods.values():
        for name, reason in method.ignored.items():
            properties[name] = {"description": f"No effect: {reason}.", "deprecated": True}
    having: dict[str, dict[str, Parameter]] = {}
    for method in methods.values():
        for name, parameter in method.parameters.items():
            having.setdefault(name, {})[method.name] = parameter
    for name in sorted(having):
        properties[name] = _parameter(having[name])
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _parameter(by_method: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the schema of one name, which several methods may use each in its own way."""
    alternatives: list[dict[str, Any]] = []
    for parameter in by_method.values():
        alternatives += [scalar for scalar in _scalars(parameter) if scalar not in alternatives]
    sentences: dict[str, list[str]] = {}
    for method, parameter in by_method.items():
        sentences.setdefault(_sentence(parameter), []).append(method)
    lines = [f"{', '.join(names)}: {sentence}" for sentence, names in sentences.items()]
    gradient = {"type": "array", "items": {"anyOf": alternatives}, "minItems": 1}
    cases = {"type": "array", "items": _CASE, "minItems": 1}
    return {"anyOf": [*alternatives, gradient, _CASE, cases], "description": "\n".join(lines)}


def _scalars(parameter: Parameter) -> Iterator[dict[str, Any]]:
    if parameter.choices:
        yield {"enum": list(parameter.choices)}
    match parameter.kind:
        case "bool":
            yield {"type": "boolean"}
            yield {"enum": ["yes", "no", "on", "off", 0, 1]}
        case "int" | "float":
            bounds = parameter.bounds
            low = "exclusiveMinimum" if bounds.open_low else "minimum"
            high = "exclusiveMaximum" if bounds.open_high else "maximum"
            yield {
                "type": "integer" if parameter.kind == "int" else "number",
                **({} if bounds.low is None else {low: bounds.low}),
                **({} if bounds.high is None else {high: bounds.high}),
            }
        case "choice":
            pass


def _sentence(parameter: Parameter) -> str:
    kind = {
        "float": f"a number, {parameter.bounds}",
        "int": f"a whole number, {parameter.bounds}",
        "bool": "true or false",
        "choice": "",
    }[parameter.kind]
    parts = [part for part in (kind, " or ".join(parameter.choices)) if part]
    default = "has to be set" if parameter.required else f"default {parameter.default}"
    each = ", one for each model or one for all" if parameter.per_model else ""
    doc = f" {parameter.doc}" if parameter.doc else ""
    return f"{' or '.join(parts)}{each}; {default}.{doc}"


def _describe(definitions: dict[str, Any]) -> None:
    """Give each field the text below it in the source."""
    tree = ast.parse(inspect.getsource(models))
    for part in tree.body:
        if not isinstance(part, ast.ClassDef) or part.name not in definitions:
            continue
        properties = definitions[part.name].get("properties", {})
        for field, text in _texts_below(part):
            if field in properties:
                properties[field]["description"] = text


def _texts_below(part: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, below in zip(part.body, part.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield statement.target.id, inspect.cleandoc(str(below.value.value))


def _tidy(part: Any) -> None:
    """Leave out the titles and empty defaults that pydantic adds."""
    if isinstance(part, dict):
        if isinstance(part.get("title"), str):
            del part["title"]
        if "default" in part and part["default"] is None:
            del part["default"]
        for inner in part.values():
            _tidy(inner)
    elif isinstance(part, list):
        for inner in part:
            _tidy(inner)

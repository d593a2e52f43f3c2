"""Which models are merged with each other? `models`, `slices` and `modules` become scopes.

What the structure's check has refused is left out here without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import KeyPath, ModelEntry, ModelRef, Scope
from mergeconf.recipe.parse_values import parse_parameters
from mergeconf.recipe.references import parse_model
from mergeconf.recipe.schema import NESTED_KEYS

_KINDS = ("models", "slices", "modules")
_END_HINT = "layers count from 0, and the second number is the layer after the last"


def parse_scopes(
    data: Mapping[str, Any], base: ModelRef | None, collector: Collector
) -> tuple[Scope, ...]:
    """Return the recipe's scopes; what is not sound is noted and left out."""
    given = [key for key in _KINDS if collector.given(key)]
    for key in given[1:]:
        collector.error((key,), f"given beside '{given[0]}'", "keep one of them", key=True)
    if collector.given("slices"):
        found = _slices(data["slices"], ("slices",), base, collector)
    elif collector.given("modules"):
        found = _modules(data["modules"], base, collector)
    else:
        location = collector.source.locate(("models",))
        entries = _models(data.get("models"), ("models",), collector)
        found = [Scope(0, (), entries, base, location=location)]
    return tuple(replace(scope, index=index) for index, scope in enumerate(found))


def is_whole(scope: Scope, collector: Collector) -> bool:
    """Tell whether all models of a scope could be read, so that they can be counted."""
    start = collector.where(scope.path or ("models",))
    return not any(
        problem.where == start
        or (problem.where.startswith(f"{start}.") and ".parameters" not in problem.where)
        for problem in collector.errors
    )


def _models(listed: object, path: KeyPath, collector: Collector) -> tuple[ModelEntry, ...]:
    entries = []
    for index, item in enumerate(listed if isinstance(listed, list) else []):
        here: KeyPath = (*path, index)
        entry = _entry(item, here, collector)
        if entry is not None:
            entries.append(entry)
    return tuple(entries)


def _entry(item: object, here: KeyPath, collector: Collector) -> ModelEntry | None:
    index = here[-1]
    assert isinstance(index, int)
    parameters: object = None
    name, path = item, here
    if isinstance(item, dict) and "recipe" in item and "model" not in item:
        name = {key: value for key, value in item.items() if key != "parameters"}
        parameters = item.get("parameters")
    elif isinstance(item, dict) and ("model" in item or not NESTED_KEYS & item.keys()):
        if "model" not in item:
            return None  # said by the structure's check
        name, parameters, path = item["model"], item.get("parameters"), (*here, "model")
    elif not isinstance(item, (str, dict)):
        return None
    values = parse_parameters(parameters, (*here, "parameters"), collector)
    model = parse_model(name, path, collector)
    if model is None:
        return None
    return ModelEntry(index, model, values, collector.source.locate(here), here)


def _slices(
    listed: object, path: KeyPath, base: ModelRef | None, collector: Collector
) -> list[Scope]:
    if listed == []:
        collector.error(path, "the list is empty", "each slice lists 'sources'")
    found = []
    for index, item in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(item, Mapping):
            found.append(_slice(item, (*path, index), base, collector))
    return found


def _slice(
    item: Mapping[str, Any], path: KeyPath, base: ModelRef | None, collector: Collector
) -> Scope:
    if item.get("base_model") is not None:
        base = parse_model(item["base_model"], (*path, "base_model"), collector)
    if item.get("residual_weight") is not None:
        collector.warn(
            "ignored-key", (*path, "residual_weight"), "has no effect", "leave it out, as mergekit"
            " does nothing with it either",
        )  # fmt: skip
    values = parse_parameters(item.get("parameters"), (*path, "parameters"), collector)
    sources = item.get("sources")
    if sources == []:
        collector.error((*path, "sources"), "the list is empty", "each source names a model")
    entries = []
    for index, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, Mapping):
            entry = _source(source, (*path, "sources", index), collector)
            if entry is not None:
                entries.append(entry)
    scope = Scope(
        0, path, tuple(entries), base, (((*path, "parameters"), values),), None, True,
        collector.source.locate(path),
    )  # fmt: skip
    _check_sources(scope, collector)
    return scope


def _source(item: Mapping[str, Any], here: KeyPath, collector: Collector) -> ModelEntry | None:
    entry = _entry(item, here, collector) if "model" in item else None
    layers = item.get("layer_range")
    if not isinstance(layers, list) or len(layers) != 2 or not all(type(n) is int for n in layers):
        return None
    first, end = layers
    path = (*here, "layer_range")
    if first < 0 or end < 0:
        collector.error(path, f"{layers} counts from the end", _END_HINT)
    elif end < first:
        hint = f"it runs backwards: write [{end}, {first}]; {_END_HINT}"
        collector.error(path, f"{layers} holds no layer", hint)
    elif end == first:
        hint = f"write [{first}, {first + 1}] for layer {first} alone; {_END_HINT}"
        collector.error(path, f"{layers} holds no layer", hint)
    elif entry is not None:
        located = collector.source.locate(path)
        return replace(entry, layer_range=(first, end), range_location=located)
    return None


def _check_sources(scope: Scope, collector: Collector) -> None:
    """Note sources of one slice whose ranges differ in length, and models given twice."""
    if len({entry.layers for entry in scope.entries}) > 1:
        counts = ", ".join(f"{entry.model} {entry.layers}" for entry in scope.entries)
        collector.error(
            scope.list_path,
            f"the sources have ranges of different lengths: {counts}",
            "each output layer is made of one layer of every source",
        )
    first: dict[str, ModelEntry] = {}
    for entry in scope.entries:
        before = first.setdefault(entry.model.key, entry)
        if before is not entry:
            collector.error(
                entry.path,
                f"'{entry.model}' is a source of this slice before, as sources.{before.index}",
                "one slice merges layers of different models",
            )


def _modules(data: object, base: ModelRef | None, collector: Collector) -> list[Scope]:
    if data == {}:
        collector.error(("modules",), "no module is named", "for example text: {models: [...]}")
    found: list[Scope] = []
    for name, item in data.items() if isinstance(data, Mapping) else ():
        if isinstance(item, Mapping):
            found += _module(name, item, base, collector)
    return found


def _module(
    name: str, item: Mapping[str, Any], base: ModelRef | None, collector: Collector
) -> list[Scope]:
    path: KeyPath = ("modules", name)
    own = ((*path, "parameters"), parse_parameters(
        item.get("parameters"), (*path, "parameters"), collector
    ))  # fmt: skip
    models, slices = item.get("models"), item.get("slices")
    if models is not None and slices is not None:
        collector.error((*path, "slices"), "given beside 'models'", "keep one of them", key=True)
    elif models is None and slices is None:
        if not {"models", "slices"} & collector.meant:
            collector.error(path, "needs 'models' or 'slices'", key=True)
    elif models == []:
        collector.error((*path, "models"), "the list is empty")
    if slices is not None:
        scopes = _slices(slices, (*path, "slices"), base, collector)
        return [replace(s, module=name, parameters=(*s.parameters, own)) for s in scopes]
    entries = _models(models, (*path, "models"), collector)
    location = collector.source.locate(path, key=True)
    return [Scope(0, path, entries, base, (own,), name, location=location)]

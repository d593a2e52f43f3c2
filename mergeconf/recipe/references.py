"""Which model is meant? Text, or mergekit's mapping; with an adapter or without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import ModelRef
from mergeconf.recipe.schema import NESTED_KEYS, ModelMapping, ModelPath
from mergeconf.recipe.words import describe
from mergeconf.recipe.yaml_source import Path


def parse_model(data: object, path: Path, collector: Collector) -> ModelRef | None:
    """Return the model that a part of a recipe names, or None where a problem was noted."""
    if isinstance(data, str):
        return _named(data, path, collector)
    if isinstance(data, Mapping):
        if NESTED_KEYS & data.keys():
            return collector.merges.written_out(data, path, collector)
        return _mapping(data, path, collector)
    quotes = "" if data is None or isinstance(data, list) else "put it in quotes"
    collector.error(path, f"expected a model's name, found {describe(data)}", quotes)
    return None


def _named(text: str, path: Path, collector: Collector) -> ModelRef | None:
    if not text.strip():
        collector.error(path, "the model's name is empty")
        return None
    if collector.merges.find(text) is not None:
        return collector.merges.named(text, path, collector)
    if "+" in text:
        return _with_adapter(text, path, collector)
    return ModelRef(text, collector.source.locate(path))


def _with_adapter(text: str, path: Path, collector: Collector) -> ModelRef | None:
    name, *adapters = (part.strip() for part in text.split("+"))
    if len(adapters) > 1 or not (name and adapters[0]):
        collector.error(
            path,
            f"'{text}' is not a model and one adapter, 'model+adapter'",
            "of several adapters, add each to the merge that adds those before it; a folder whose "
            "name has a '+' is written as {model: {path: ...}}",
        )
        return None
    adapter = ModelRef(adapters[0], collector.source.locate(path))
    return _adapted(_named(name, path, collector), adapter, path, collector)


def _adapted(
    model: ModelRef | None, adapter: ModelRef | None, path: Path, collector: Collector
) -> ModelRef | None:
    if model is None or adapter is None:
        return None
    location = collector.source.locate(path)
    return ModelRef(f"{model}+{adapter}", location, adapted=(model, adapter))


def _mapping(data: Mapping[str, Any], path: Path, collector: Collector) -> ModelRef | None:
    for key in data:
        if key not in ModelMapping.model_fields:
            collector.unknown_key((*path, key), ModelMapping.model_fields)
    if data.get("override_architecture") is not None:
        collector.warn(
            "override-architecture",
            (*path, "override_architecture"),
            "has no effect: tensors are told by their names, whatever the architecture",
        )
    model = _inner(data, path, collector)
    if data.get("lora") is None:
        return model
    return _adapted(model, _path(data, "lora", path, collector), path, collector)


def _inner(data: Mapping[str, Any], path: Path, collector: Collector) -> ModelRef | None:
    inner = data.get("model")
    if inner is None and "model" in collector.meant:
        return None
    if isinstance(inner, Mapping) and not NESTED_KEYS & inner.keys():
        return _path(data, "model", path, collector)
    return parse_model(inner, (*path, "model"), collector)


def _path(data: Mapping[str, Any], key: str, path: Path, collector: Collector) -> ModelRef | None:
    """Return what a key of the mapping names: text, or a mapping of path and revision."""
    inner, place = data[key], (*path, key)
    if isinstance(inner, str) and inner.strip():
        return _folder(inner, key, place, collector)
    if not isinstance(inner, Mapping):
        collector.error(
            place, f"expected a folder's or a repository's name, found {describe(inner)}"
        )
        return None
    for name in inner:
        if name not in ModelPath.model_fields:
            collector.unknown_key((*place, name), ModelPath.model_fields)
    folder, revision = inner.get("path"), inner.get("revision")
    if not isinstance(folder, str) or not isinstance(revision, str | None):
        part = "path" if not isinstance(folder, str) else "revision"
        found = describe(inner.get(part))
        collector.error((*place, part), f"expected text, found {found}")
        return None
    text = folder if revision is None else f"{folder}@{revision}"
    return _folder(text, key, place, collector)


def _folder(text: str, key: str, place: Path, collector: Collector) -> ModelRef | None:
    """Return the model or adapter of that name; a model may be a merge that has the name."""
    if key == "model" and collector.merges.find(text) is not None:
        return collector.merges.named(text, place, collector)
    return ModelRef(text, collector.source.locate(place))

"""Which model is meant? Text, mergekit's mapping, or what is not supported yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import ModelRef
from mergeconf.recipe.not_yet import refuse
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
        refuse("adapter", path, collector)
        return None
    return ModelRef(text, collector.source.locate(path))


def _mapping(data: Mapping[str, Any], path: Path, collector: Collector) -> ModelRef | None:
    for key in data:
        if key not in ModelMapping.model_fields:
            collector.unknown_key((*path, key), ModelMapping.model_fields)
    if data.get("lora") is not None:
        refuse("adapter", (*path, "lora"), collector, key=True)
    if data.get("override_architecture") is not None:
        collector.warn(
            "override-architecture",
            (*path, "override_architecture"),
            "has no effect: tensors are told by their names, whatever the architecture",
        )
    inner = data.get("model")
    if inner is None and "model" in collector.meant:
        return None
    if not isinstance(inner, Mapping):
        return parse_model(inner, (*path, "model"), collector)
    for key in inner:
        if key not in ModelPath.model_fields:
            collector.unknown_key((*path, "model", key), ModelPath.model_fields)
    folder, revision = inner.get("path"), inner.get("revision")
    if not isinstance(folder, str) or not isinstance(revision, str | None):
        part = "path" if not isinstance(folder, str) else "revision"
        found = describe(inner.get(part))
        collector.error((*path, "model", part), f"expected text, found {found}")
        return None
    text = folder if revision is None else f"{folder}@{revision}"
    return _named(text, (*path, "model"), collector)

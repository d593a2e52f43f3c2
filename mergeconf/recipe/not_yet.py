"""What does a recipe have a place for that mergeconf cannot do yet? The one list of it.

Taking a line out of `NOT_YET` is the last step of the work that makes its feature real.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeconf.recipe.collect import Collector
from mergeconf.recipe.yaml_source import Path

CODE = "not-yet"
"""`Problem.code` of what is understood but not supported yet."""

NOT_YET: Mapping[str, str] = {
    "chat_template": "chat templates are not supported yet",
    "tokenizer": "only the base model's tokenizer is supported yet",
}
"""Feature → what is said of it."""

_HINTS: Mapping[str, str] = {
    "chat_template": "leave it out: the base model's template is copied",
    "tokenizer": "write 'source: base', or leave it out",
}


def refuse(feature: str, path: Path, collector: Collector, *, key: bool = False) -> None:
    """Note that a feature is not supported yet, where it is not."""
    if feature in NOT_YET:
        hint = _HINTS.get(feature, "")
        collector.error(path, NOT_YET[feature], hint, key=key, code=CODE)


def refuse_unsupported(data: Mapping[str, Any], collector: Collector) -> None:
    """Note every top-level key that is not supported yet."""
    for feature in ("chat_template",):
        if data.get(feature) is not None:
            refuse(feature, (feature,), collector, key=True)
    source = data.get("tokenizer_source")
    if source is not None and source != "base":
        refuse("tokenizer", ("tokenizer_source",), collector)
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, Mapping):
        if tokenizer.get("source") != "base" and "source" not in collector.meant:
            refuse("tokenizer", ("tokenizer", "source"), collector)
        for key in ("tokens", "pad_to_multiple_of"):
            if tokenizer.get(key) is not None:
                refuse("tokenizer", ("tokenizer", key), collector, key=True)

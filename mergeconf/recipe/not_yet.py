"""What does a recipe have a place for that mergeconf cannot do yet? The one list of it.

Taking a line out of `NOT_YET` is the last step of the work that makes its feature real.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergeconf.recipe.collect import Collector
from mergeconf.recipe.yaml_source import Path

CODE = "not-yet"
"""`Problem.code` of what is understood but not supported yet."""

NOT_YET: Mapping[str, str] = {}
"""Feature → what is said of it."""

_HINTS: Mapping[str, str] = {}


def refuse(feature: str, path: Path, collector: Collector, *, key: bool = False) -> None:
    """Note that a feature is not supported yet, where it is not."""
    if feature in NOT_YET:
        hint = _HINTS.get(feature, "")
        collector.error(path, NOT_YET[feature], hint, key=key, code=CODE)

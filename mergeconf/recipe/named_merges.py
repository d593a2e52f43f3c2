"""Which merges have names in a recipe file? `definitions`, and documents with a `name`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from mergeconf.errors import listed
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.merges import Around, Merges
from mergeconf.recipe.words import describe

_KEY = "definitions"


def define_merges(
    data: Mapping[str, Any],
    merges: Merges,
    collector: Collector,
    seed: tuple[int, str],
    dtype: str | None,
) -> None:
    """Make known what a recipe defines, and what the merges inside it take from it.

    Args:
        data: The recipe.
        merges: Takes the definitions.
        collector: Takes the problems.
        seed: Seed of the recipe, and which of those that share it the recipe is.
        dtype: dtype of the recipe.
    """
    merges.inside = Around(*seed, dtype)
    definitions = data.get(_KEY)
    if definitions is None:
        return
    if not isinstance(definitions, Mapping):
        found = describe(definitions)
        collector.error((_KEY,), f"expected names and merges, found {found}")
        return
    for name in definitions:
        if not name.strip():
            collector.error((_KEY, name), "the merge's name is empty", key=True)
        merges.define(name, partial(merges.part, name, (_KEY, name), collector))


def load_unused(data: Mapping[str, Any], merges: Merges, collector: Collector) -> None:
    """Look at the definitions that nothing has named: their problems are told all the same."""
    definitions = data.get(_KEY)
    for name in definitions if isinstance(definitions, Mapping) else ():
        if name not in merges.used:
            merges.load(name, (_KEY, name), collector)
            collector.warn("unused-definition", (_KEY, name), "no model is given by this name")


def name_documents(collectors: Sequence[Collector]) -> dict[str, int]:
    """Return the number of each document that has a name, where there are several.

    Two documents of one name, or two without, are problems.
    """
    named: dict[str, int] = {}
    unnamed: Collector | None = None
    if len(collectors) == 1:
        return named
    for index, collector in enumerate(collectors):
        data = collector.source.data
        name = data.get("name") if isinstance(data, Mapping) else None
        if isinstance(name, str) and name:
            if name in named:
                collector.error(("name",), f"a document before is named '{name}' too")
            named.setdefault(name, index)
        elif unnamed is None:
            unnamed = collector
        else:
            first = unnamed.source.locate(())
            collector.error(
                (),
                f"has no name, like the document at {first}",
                "only the document that is the result goes without: give the other a 'name'",
            )
    return named


def result_of(
    collectors: Sequence[Collector], named: Mapping[str, int], used: Collection[str]
) -> int:
    """Return the number of the document that is the result: the one without a name, or the only
    one that no other uses."""
    unnamed = [index for index in range(len(collectors)) if index not in named.values()]
    unused = [name for name in named if name not in used]
    if unnamed:
        for name in unused:
            message = "no other document uses it, so it is not made"
            collectors[named[name]].warn("unused-document", ("name",), message)
        return unnamed[0]
    if len(unused) > 1:
        collectors[named[unused[1]]].error(
            ("name",),
            f"which document is the result? {listed(unused)} are used by no other",
            "leave out the name of the one that is",
        )
    return named[unused[0]] if unused else 0

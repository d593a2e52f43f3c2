"""Which merges can a recipe name as models? Those written inside it, in other files, or beside it.

A merge inside a recipe, or under `definitions`, takes seed and dtype from the recipe around it
where it names none. A merge in a file of its own, or a document of its own, stands by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeconf.errors import RecipeError
from mergeconf.recipe.collect import Collector, dotted
from mergeconf.recipe.model import ModelRef, Recipe
from mergeconf.recipe.words import describe
from mergeconf.recipe.yaml_source import Path as KeyPath

DEEPEST = 50
"""Most merges inside each other."""
_WHOLE_ONLY = ("output", "metadata", "silence")
"""Keys that speak of what is written, which a merge inside a recipe is not."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a merge takes from the recipe around it where it does not say otherwise."""

    seed: int = 0
    seed_scope: str = ""
    dtype: str | None = None


@dataclass(slots=True)
class Loading:
    """What is shared by all recipes that are loaded together."""

    load_part: Callable[[Collector, Merges, Path | None], Recipe]
    """Loads what a collector's data says."""
    load_file: Callable[[Path, Loading], Recipe]
    texts: Mapping[str, str] | None = None
    """Texts of all recipes in other files, by path, where none is to be read."""
    open: list[tuple[str, str]] = field(default_factory=list)
    """Merges that are being loaded, the outermost first: what tells them apart, and their name."""
    files: dict[str, Recipe] = field(default_factory=dict)
    """Recipes in files of their own, by path."""

    def enter(
        self, key: str, name: str, load: Callable[[], Recipe | None], path: KeyPath,
        collector: Collector,
    ) -> Recipe | None:  # fmt: skip
        """Load a merge, unless it is one of those that are being loaded.

        Args:
            key: What tells it from others.
            name: What messages call it.
            load: Loads it.
            path: Where it is named.
            collector: Takes the problem where it is inside itself.
        """
        keys = [known for known, _ in self.open]
        if key in keys:
            circle = [shown for _, shown in self.open[keys.index(key) :]]
            collector.error(path, f"merges go in a circle: {' → '.join([*circle, name])}")
            return None
        if len(self.open) >= DEEPEST:
            collector.error(path, f"more than {DEEPEST} merges inside each other")
            return None
        self.open.append((key, name))
        try:
            return load()
        finally:
            self.open.pop()


class Merges:
    """The merges that the models of one recipe can name."""

    def __init__(
        self, loading: Loading, folder: Path, around: Around, outer: Merges | None = None
    ) -> None:
        self.loading = loading
        self.folder = folder
        self.around = around
        """For the recipe itself."""
        self.inside = around
        """For the merges inside it."""
        self.used: set[str] = set()
        """Names that some model is given by."""
        self._outer = outer
        self._named: dict[str, Callable[[], Recipe | None]] = {}
        self._loaded: dict[str, Recipe | None] = {}

    def define(self, name: str, load: Callable[[], Recipe | None]) -> None:
        """Make a merge known under a name; it is loaded when it is first named."""
        self._named[name] = load

    def find(self, name: str) -> Merges | None:
        """Return where a name is defined, the innermost place first, or None."""
        if name in self._named:
            return self
        return self._outer.find(name) if self._outer is not None else None

    def load(self, name: str, path: KeyPath, collector: Collector) -> Recipe | None:
        """Return a merge that is defined here, or None where a problem was noted."""
        if name not in self._loaded:
            key = f"{id(self)} {name}"
            load = self._named[name]
            self._loaded[name] = self.loading.enter(key, name, load, path, collector)
        return self._loaded[name]

    def named(self, text: str, path: KeyPath, collector: Collector) -> ModelRef | None:
        """Return the model of a merge that a text names, or None where a problem was noted."""
        owner = self.find(text)
        assert owner is not None
        owner.used.add(text)
        recipe = owner.load(text, path, collector)
        return _reference(text, path, collector, recipe)

    def written_out(
        self, data: Mapping[str, Any], path: KeyPath, collector: Collector
    ) -> ModelRef | None:
        """Return the model of a merge that stands in the place of a model's name."""
        if "recipe" in data:
            return self._in_file(data, path, collector)
        label = data.get("name")
        place = dotted((*collector.prefix, *path))
        text = label if isinstance(label, str) and label else place
        recipe = self.part(text, path, collector)
        return _reference(place if text == place else f"{text} ({place})", path, collector, recipe)

    def part(self, name: str, path: KeyPath, collector: Collector) -> Recipe | None:
        """Load the merge that stands at a path of a recipe."""
        child = collector.child(path)
        data = child.source.data
        if not isinstance(data, Mapping):
            collector.error(path, f"expected a merge, found {describe(data)}")
            return None
        for key in _WHOLE_ONLY:
            if key in data:
                message = "has no effect in a merge inside a recipe"
                child.error((key,), message, "leave it out", key=True)
        if "recipe" in data:
            found = self._in_file(data, path, collector)
            return None if found is None else found.merge
        scope = f"{self.inside.seed_scope}/{name}"
        around = Around(self.inside.seed, scope, self.inside.dtype)
        merges = Merges(self.loading, self.folder, around, self)
        return self.loading.load_part(child, merges, None)

    def _in_file(
        self, data: Mapping[str, Any], path: KeyPath, collector: Collector
    ) -> ModelRef | None:
        for key in data:
            if key != "recipe":
                collector.error(
                    (*path, key), "given beside 'recipe'", "put it into that file", key=True
                )
        name = data["recipe"]
        if not isinstance(name, str):
            found = describe(name)
            collector.error((*path, "recipe"), f"expected the path of a recipe, found {found}")
            return None
        file = self.folder / Path(name).expanduser()

        def load() -> Recipe | None:
            key = str(file.resolve())
            if key not in self.loading.files:
                try:
                    self.loading.files[key] = self.loading.load_file(file, self.loading)
                except RecipeError as error:
                    collector.adopt(error.problems, (*path, "recipe"))
                    return None
            return self.loading.files[key]

        where: KeyPath = (*path, "recipe")
        recipe = self.loading.enter(str(file.resolve()), name, load, where, collector)
        return _reference(name, path, collector, recipe)


def _reference(
    text: str, path: KeyPath, collector: Collector, recipe: Recipe | None
) -> ModelRef | None:
    if recipe is None:
        return None
    return ModelRef(text, collector.source.locate(path), recipe)

"""Which stored tensors stand behind each tensor of an output made of slices or modules?

Turns the names of the models into the names of the output: layers in the order of the slices,
numbered from 0; before them what the first slice's models have, after them what the last one's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergeconf.errors import Problem
from mergeconf.layers import Place, follows_layers
from mergeconf.plan.alignment import Alignment
from mergeconf.plan.data import Dropped
from mergeconf.plan.depth import Depth
from mergeconf.plan.sources import Model, Source
from mergeconf.plan.stacks import Part, find_parts, part_of
from mergeconf.recipe import ModelEntry, Recipe, Scope

ByLabel = dict[str, Source]


def assemble(
    recipe: Recipe, models: Mapping[str, Model], alignment: Alignment
) -> tuple[Alignment, list[Problem]]:
    """Return the alignment of the output's names, and what the slices or modules ask in vain."""
    if not recipe.assembled:
        return alignment, []
    parts, problems = find_parts(recipe, models)
    if problems:
        return alignment, problems
    builder = _Builder(recipe, models, alignment)
    builder.build(parts)
    return replace(
        alignment,
        names=tuple(builder.sources),
        places=builder.places,
        sources=builder.sources,
        scopes=builder.scopes,
        depths=tuple(builder.depths),
    ), []


@dataclass(slots=True)
class _Builder:
    """Collects the output's tensors, part by part."""

    recipe: Recipe
    models: Mapping[str, Model]
    alignment: Alignment
    sources: dict[str, ByLabel] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    scopes: dict[str, int | None] = field(default_factory=dict)
    depths: list[Depth] = field(default_factory=list)

    def build(self, parts: Sequence[Part]) -> None:
        """Take in every tensor of the models, and make the layers of slices."""
        owned: dict[int, list[str]] = {}
        stacks = tuple(dict.fromkeys(p.stack for p in self.alignment.places.values() if p.stack))
        for name, place in self.alignment.places.items():
            part = part_of(name, place, parts, stacks)
            if part is None:
                self._keep(name, None)
            else:
                owned.setdefault(parts.index(part), []).append(name)
        for index, part in enumerate(parts):
            self._part(part, owned.get(index, []))

    def _part(self, part: Part, names: Sequence[str]) -> None:
        if not part.scopes[0].sliced:
            for name in names:
                self._keep(name, part.scopes[0])
            return
        layers: dict[int, dict[str, ByLabel]] = {}
        after = []
        for name in names:
            place = self.alignment.places[name]
            if place.stack == part.stack and place.layer is not None:
                rest = name.split(".", part.stack.count(".") + 2)[-1] if part.stack else name
                layers.setdefault(place.layer, {})[rest] = self.alignment.sources[name]
            elif follows_layers(name.removeprefix(part.prefix)):
                after.append(name)
            else:
                self._keep(name, part.scopes[0])
        at_start = _only_at_start(layers)
        for rest in at_start:
            name = f"{part.stack}.0.{rest}"
            self._keep(name, part.scopes[0])
            del layers[0][rest]
        self._layers(part, layers)
        for name in after:
            self._keep(name, part.scopes[-1])

    def _keep(self, name: str, scope: Scope | None) -> None:
        """Take in a tensor outside the slices' layers, under its name."""
        sources = self.alignment.sources[name]
        if scope is not None and scope.sliced:
            models = [*(entry.model for entry in scope.entries), scope.base_model]
            labels = {self.models[model.key].label for model in models if model is not None}
            if labels.isdisjoint(sources) and not self._is_taken(name):
                return
        self.sources[name] = sources
        self.places[name] = self.alignment.places[name]
        self.scopes[name] = None if scope is None else scope.index

    def _is_taken(self, name: str) -> bool:
        place = self.alignment.places[name]
        rules = (rule for rule in self.recipe.rules if rule.matcher.fits(name, place))
        return next((rule.take for rule in rules), self.recipe.take) is not None

    def _layers(self, part: Part, layers: Mapping[int, Mapping[str, ByLabel]]) -> None:
        total = sum(scope.layers for scope in part.scopes)
        origins: list[tuple[Model, int]] = []
        assert part.stack is not None
        for scope in part.scopes:
            leading = _leading(scope)
            for step in range(scope.layers):
                found = self._layer(scope, layers, step)
                for rest, by_label in found.items():
                    name = f"{part.stack}.{len(origins)}.{rest}"
                    self.sources[name] = by_label
                    module = rest.rpartition(".")[0]
                    span = (step, scope.layers)
                    self.places[name] = Place(part.stack, len(origins), module, total, span)
                    self.scopes[name] = scope.index
                origins.append((self.models[leading.model.key], _first(leading) + step))
        self.depths.append(Depth(part.stack, tuple(origins)))

    def _layer(
        self, scope: Scope, layers: Mapping[int, Mapping[str, ByLabel]], step: int
    ) -> dict[str, ByLabel]:
        """Return the tensors of one output layer by the rest of their names."""
        found: dict[str, ByLabel] = {}
        for entry in scope.entries:
            label = self.models[entry.model.key].label
            for rest, having in layers.get(_first(entry) + step, {}).items():
                if label in having:
                    found.setdefault(rest, {})[label] = having[label]
        return found


def _only_at_start(layers: Mapping[int, Mapping[str, ByLabel]]) -> list[str]:
    """Return what the first layer has beside all that every other has (T5's position bias).

    It belongs to the place, not to the layer: the output's first layer has it, and no other.
    """
    others = {frozenset(names) for number, names in layers.items() if number}
    if len(others) != 1 or 0 not in layers:
        return []
    shared = next(iter(others))
    return [] if shared - layers[0].keys() else [n for n in layers[0] if n not in shared]


def _leading(scope: Scope) -> ModelEntry:
    """Return the entry that speaks for its slice: the base, or else the first."""
    base = scope.base_model.key if scope.base_model else None
    return next((e for e in scope.entries if e.model.key == base), scope.entries[0])


def _first(entry: ModelEntry) -> int:
    assert entry.layer_range is not None
    return entry.layer_range[0]


def left_out(
    recipe: Recipe,
    models: Mapping[str, Model],
    before: Alignment,
    after: Alignment,
    used: Collection[tuple[str, str]],
    dropped: Collection[Dropped],
) -> Iterator[Dropped]:
    """Yield the models' tensors that no slice takes.

    Args:
        recipe: The recipe.
        models: By key.
        before: Where the models keep their tensors.
        after: Where the output takes its from.
        used: Label and name of the tensors that the output is made from.
        dropped: Those that are left out by a rule, by their names in the output.
    """
    if not recipe.assembled:
        return
    used = set(used)
    for name, place in after.places.items():
        if place.layer is not None:
            used |= {(label, stored.name) for label, stored in after.sources[name].items()}
    by_rule = {item.name for item in dropped}
    listed = {models[entry.model.key].label for entry in recipe.models}
    for name, sources in before.sources.items():
        labels = tuple(
            label for label, stored in sources.items()
            if (label, stored.name) not in used and label in listed
        )  # fmt: skip
        place = before.places[name]
        if not labels or (name in by_rule and place.layer is None):
            continue
        if place.layer is None:
            reason = "outside the layers, and decided by the models of another slice"
        else:
            reason = f"layer {place.layer}, which no slice takes"
        yield Dropped(name, labels, reason)

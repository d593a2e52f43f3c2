"""How do models not fit together? Collects what was met, and says it in as few words as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mergeconf.errors import Location, Problem, listed
from mergeconf.layers import stacks_of
from mergeconf.plan.alignment import EMBEDDINGS, TIED_TO_EMBEDDING, Alignment
from mergeconf.plan.sources import Source
from mergeconf.recipe import Recipe

_SHOWN = 3
"""Tensors named in one message."""


@dataclass(slots=True)
class Misfits:
    """Tensors that cannot be merged as asked, by the way in which they do not fit."""

    _missing: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    _shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], list[str]] = field(default_factory=dict)
    _formats: dict[tuple[tuple[str, str], ...], list[str]] = field(default_factory=dict)
    _nowhere: list[str] = field(default_factory=list)

    def missing(self, name: str, labels: Sequence[str]) -> None:
        """Note a tensor that some of the models needed for it do not have."""
        self._missing.setdefault(tuple(labels), []).append(name)

    def nowhere(self, name: str) -> None:
        """Note a tensor that no module names."""
        self._nowhere.append(name)

    def shapes(self, name: str, labels: Sequence[str], stored: Sequence[Source]) -> None:
        """Note a tensor whose shapes differ."""
        key = tuple((label, item.shape) for label, item in zip(labels, stored, strict=True))
        self._shapes.setdefault(key, []).append(name)

    def format(self, name: str, labels: Sequence[str], stored: Sequence[Source]) -> None:
        """Note a tensor whose number formats cannot be merged."""
        key = tuple((label, item.dtype.name) for label, item in zip(labels, stored, strict=True))
        self._formats.setdefault(key, []).append(name)

    def problems(self, alignment: Alignment, recipe: Recipe) -> Iterator[Problem]:
        """Yield one problem for each way in which tensors do not fit."""
        places = {reference.text: reference.location for reference in recipe.referenced()}
        if self._nowhere:
            yield Problem(
                f"no module names {_tensors(self._nowhere)}",
                "modules",
                recipe.locations.get("modules"),
                "list the module, or decide them by a rule (drop: true, or take: base_model)",
            )
        if not alignment.depths:
            yield from self._layer_problems(alignment, places)
        for labels, names in self._missing.items():
            having = list(alignment.sources[names[0]])
            yield Problem(
                f"{_tensors(names)}, which {listed(having)} {'has' if len(having) == 1 else 'have'}"
                f", {'is' if len(names) == 1 else 'are'} not there",
                where=listed(labels),
                location=places.get(labels[0]),
                hint="leave them out by a rule (drop: true), or copy them (take: ...)"
                if not alignment.depths
                else "only a source of a slice gives it layers: list the model there, with its "
                "layer_range, or leave them out by a rule (drop: true)",
            )
        for shapes, names in self._shapes.items():
            yield _shape_problem(shapes, names, places)
        for formats, names in self._formats.items():
            yield _format_problem(formats, names, places)

    def _layer_problems(
        self, alignment: Alignment, places: dict[str, Location | None]
    ) -> Iterator[Problem]:
        """Say it in one sentence where models have different numbers of layers."""
        stacks = [stacks_of(model.tensors) for model in alignment.models]
        for stack in dict.fromkeys(name for found in stacks for name in found):
            counts = [found.get(stack, 0) for found in stacks]
            if len(set(counts)) == 1:
                continue
            explained = [
                labels for labels, names in self._missing.items()
                if any(name.startswith(f"{stack}.") for name in names)
            ]  # fmt: skip
            if not explained:
                continue
            for labels in explained:
                kept = [n for n in self._missing[labels] if not n.startswith(f"{stack}.")]
                self._missing[labels] = kept
                if not kept:
                    del self._missing[labels]
            models = zip(alignment.models, counts, strict=True)
            fewest = min(zip(counts, alignment.models, strict=True), key=lambda pair: pair[0])[1]
            yield Problem(
                "the models have different numbers of layers: "
                + ", ".join(f"{model.label} {count}" for model, count in models),
                where=stack,
                location=places.get(fewest.label),
                hint="models of different depth cannot be merged layer by layer",
            )


def _tensors(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"tensor {names[0]}"
    return f"{len(names):,} tensors ({listed(names, _SHOWN)})"


def _shape_problem(
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    names: Sequence[str],
    places: dict[str, Location | None],
) -> Problem:
    said = ", ".join(f"{label} {list(shape)}" for label, shape in shapes)
    rows = {shape[:1] for _, shape in shapes}
    rest = {shape[1:] for _, shape in shapes}
    hint = "only models of one architecture and size can be merged"
    if len(rest) == 1 and len(rows) > 1 and names[0].endswith((*EMBEDDINGS, *TIED_TO_EMBEDDING)):
        hint = (
            "the vocabularies have different sizes; align them by their tokens: "
            "tokenizer: {source: union}, or take these tensors from one model by a rule"
        )
    odd = next((label for label, shape in shapes[1:] if shape != shapes[0][1]), shapes[0][0])
    return Problem(
        f"shapes differ: {said}" + (f"; {len(names)} such tensors" if len(names) > 1 else ""),
        where=names[0],
        location=places.get(odd),
        hint=hint,
    )


def _format_problem(
    formats: tuple[tuple[str, str], ...],
    names: Sequence[str],
    places: dict[str, Location | None],
) -> Problem:
    kinds = dict.fromkeys(kind for _, kind in formats)
    said = ", ".join(f"{label} {kind}" for label, kind in formats)
    if any(kind.startswith("float8") for kind in kinds):
        hint = (
            "8-bit floats without their scale cannot be told from quantized weights: convert the "
            "model to bfloat16 first, or copy them by a rule (take: ...)"
        )
    else:
        hint = "whole numbers and floating point numbers cannot be merged with each other"
    return Problem(
        f"{_tensors(names)} cannot be merged: {said}",
        where=formats[0][0],
        location=places.get(formats[0][0]),
        hint=hint,
    )

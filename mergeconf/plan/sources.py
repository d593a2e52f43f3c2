"""What does a model give to a merge? Tensors that are stored, and such as are computed from these.

A merge of merges, a model with an adapter and an embedding over another vocabulary are models whose
tensors are expressions over stored ones. They become part of the expressions that use them, so
nothing in between is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from mergeconf.checkpoint import Checkpoint, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.errors import Problem
from mergeconf.graph.nodes import Input, Node
from mergeconf.graph.rewrite import substitute

Origin = tuple[int, str, str]
"""What random draws follow: seed, name of the tensor, and the nested merge whose seed is that of
the recipe around it (else empty)."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A model's tensor that is not stored but computed."""

    name: str
    dtype: DType
    """Format of the values that the expression gives: those that would be stored."""
    shape: tuple[int, ...]
    expression: Node
    """Stored bits in `dtype`, over the slots of `inputs`."""
    inputs: tuple[StoredTensor, ...]
    """The stored tensor of each slot."""
    labels: tuple[str, ...]
    """The model that each slot is read from."""
    origins: tuple[Origin, ...] = ()
    """What its random draws follow, by `Random.scope`, from 0; empty where it draws none."""

    @property
    def nbytes(self) -> int:
        """Length in bytes, were it stored."""
        return prod(self.shape) * self.dtype.itemsize


Source = StoredTensor | Derived


@dataclass(frozen=True, slots=True)
class Model:
    """One model that a recipe names."""

    label: str
    """What messages call it."""
    tensors: Mapping[str, Source]
    """By name, in file order."""
    config: dict[str, Any] | None
    """Content of config.json, or None where there is none."""
    files: Mapping[str, bytes | Path]
    """Its small files, config.json included, by name: content, or where they lie."""
    checkpoints: tuple[Checkpoint, ...]
    """What is read for it."""
    warnings: tuple[Problem, ...] = ()
    """What was found and does not stand in the way."""
    made_by: str = ""
    """How it is made, in words, where it is not simply stored."""

    @classmethod
    def stored(cls, checkpoint: Checkpoint) -> Model:
        """Return the model that a checkpoint holds."""
        return cls(
            label=checkpoint.label,
            tensors=checkpoint.tensors,
            config=checkpoint.config,
            files={sidecar.name: sidecar.path for sidecar in checkpoint.sidecars},
            checkpoints=(checkpoint,),
            warnings=checkpoint.warnings,
        )


@dataclass(slots=True)
class Bound:
    """Several models' tensors as expressions over one list of input slots."""

    nodes: list[Node] = field(default_factory=list)
    """One expression a tensor, of stored bits."""
    inputs: list[StoredTensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    """By `Random.scope`, from 1: scope 0 is the output tensor's own."""

    @classmethod
    def of(cls, sources: Sequence[Source], labels: Sequence[str]) -> Bound:
        """Return tensors side by side.

        Args:
            sources: The tensors.
            labels: The model that each belongs to.
        """
        bound = cls()
        for source, label in zip(sources, labels, strict=True):
            bound._add(source, label)
        return bound

    def _add(self, source: Source, label: str) -> None:
        first = len(self.inputs)
        if isinstance(source, StoredTensor):
            self.nodes.append(Input(first, source.dtype))
            self.inputs.append(source)
            self.labels.append(label)
            return
        slots = {slot: Input(first + slot, item.dtype) for slot, item in enumerate(source.inputs)}
        scope = 1 + len(self.origins)
        scopes = {old: scope + old for old in range(len(source.origins))}
        self.nodes.append(substitute(source.expression, slots, scopes))
        self.inputs.extend(source.inputs)
        self.labels.extend(source.labels)
        self.origins.extend(source.origins)


def expression_key(source: Source) -> object:
    """Return what an expression made from a tensor depends on, beside the tensor's shape."""
    return source.dtype if isinstance(source, StoredTensor) else id(source.expression)


def checkpoints_of(models: Iterable[Model]) -> tuple[Checkpoint, ...]:
    """Return all that is read for models, each once."""
    found: dict[int, Checkpoint] = {}
    for model in models:
        for checkpoint in model.checkpoints:
            found.setdefault(id(checkpoint), checkpoint)
    return tuple(found.values())

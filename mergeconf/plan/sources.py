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
from mergeconf.storage.layout import DIFFUSION_STEM, STEM

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
    written_as: DType | None = None
    """Format of the output where the recipe names none, if it is not `dtype`."""

    @property
    def nbytes(self) -> int:
        """Length in bytes, were it stored."""
        return prod(self.shape) * written_dtype(self).itemsize


Source = StoredTensor | Derived


def written_dtype(source: Source) -> DType:
    """Return the format that a tensor is written in where the recipe names none."""
    own = source.written_as if isinstance(source, Derived) else None
    return own or source.dtype


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
    aside: Mapping[str, str] = field(default_factory=dict)
    """What else is stored and is no tensor of the model's own, by name: what it is there for."""

    @property
    def file_stem(self) -> str:
        """How the names of weight files start that the library which loads it looks for."""
        names = [file.path.name for part in self.checkpoints[:1] for file in part.files]
        diffusion = names and all(name.startswith(DIFFUSION_STEM) for name in names)
        return DIFFUSION_STEM if diffusion else STEM

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
    """Several models' tensors over one list of input slots; what two of them read is read once."""

    inputs: list[StoredTensor] = field(default_factory=list)
    """The stored tensor of each slot."""
    labels: list[str] = field(default_factory=list)
    """The model that each slot is read from."""
    origins: list[Origin] = field(default_factory=list)
    """By `Random.scope`, from 1: scope 0 is the output tensor's own."""
    _parts: list[tuple[Source, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Each tensor, with the slots of its inputs and the scopes of its random draws."""
    _slots: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Sequence[Source], labels: Sequence[str]) -> Bound:
        """Return tensors side by side.

        Args:
            sources: The tensors.
            labels: The model that each belongs to.
        """
        bound = cls()
        for source, label in zip(sources, labels, strict=True):
            if isinstance(source, StoredTensor):
                bound._parts.append((source, (bound._slot(source, label),), ()))
                continue
            slots = map(bound._slot, source.inputs, source.labels)
            scopes = map(bound._scope, source.origins)
            bound._parts.append((source, tuple(slots), tuple(scopes)))
        return bound

    @property
    def key(self) -> object:
        """What the expressions depend on, beside the tensors' shape."""
        return tuple(
            (source.dtype if isinstance(source, StoredTensor) else id(source.expression), *rest)
            for source, *rest in self._parts
        )

    def nodes(self) -> list[Node]:
        """Return each tensor as an expression of stored bits over the slots."""
        found: list[Node] = []
        for source, slots, scopes in self._parts:
            if isinstance(source, StoredTensor):
                found.append(Input(slots[0], source.dtype))
                continue
            inputs = {
                old: Input(new, stored.dtype)
                for old, (new, stored) in enumerate(zip(slots, source.inputs, strict=True))
            }
            found.append(substitute(source.expression, inputs, dict(enumerate(scopes))))
        return found

    def _slot(self, stored: StoredTensor, label: str) -> int:
        slot = self._slots.setdefault(id(stored), len(self.inputs))
        if slot == len(self.inputs):
            self.inputs.append(stored)
            self.labels.append(label)
        return slot

    def _scope(self, origin: Origin) -> int:
        if origin not in self.origins:
            self.origins.append(origin)
        return 1 + self.origins.index(origin)


def checkpoints_of(models: Iterable[Model]) -> tuple[Checkpoint, ...]:
    """Return all that is read for models, each once."""
    found: dict[int, Checkpoint] = {}
    for model in models:
        for checkpoint in model.checkpoints:
            found.setdefault(id(checkpoint), checkpoint)
    return tuple(found.values())

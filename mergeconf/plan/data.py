"""A plan: everything that a run will do, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from mergeconf.checkpoint import Checkpoint, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.errors import Problem
from mergeconf.graph.nodes import Node
from mergeconf.plan.sources import Model, Origin
from mergeconf.recipe import Decision, Recipe
from mergeconf.storage.layout import Layout


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one output tensor is made."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    """Format that is written."""
    expression: Node
    """What is computed, over input slots."""
    inputs: tuple[StoredTensor, ...]
    """The stored tensor of each slot."""
    labels: tuple[str, ...] = ()
    """The model that each slot is read from."""
    decision: Decision | None = field(default=None, compare=False)
    """What the recipe says of it; None for whole numbers that are copied."""
    origins: tuple[Origin, ...] = ()
    """What the draws of nested merges follow, by `Random.scope`, from 1."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length of the output in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Dropped:
    """A tensor of the models that is left out of the output, on purpose."""

    name: str
    models: tuple[str, ...]
    """Models that have it."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do."""

    recipe: Recipe
    models: tuple[Model, ...]
    """All models that the recipe names, the base first."""
    checkpoints: tuple[Checkpoint, ...]
    """All that is read for them."""
    donor: Model
    """The model that config, tokenizer and other small files come from: the base, or the first."""
    tensors: tuple[TensorPlan, ...]
    """In the order in which the output holds them."""
    dropped: tuple[Dropped, ...]
    layout: Layout
    sidecars: Mapping[str, bytes | Path]
    """Small files of the output: content, or the file to copy."""
    config: Mapping[str, Any] | None
    """What its config.json says, or None where it has none."""
    warnings: tuple[Problem, ...]
    rule_counts: tuple[int, ...]
    """How many tensors each rule decides."""
    tokenizer_bytes: int = 0
    """Most bytes that putting the tokenizer together has taken, which the process may still hold;
    0 where it is copied."""

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def left_out(self) -> tuple[Dropped, ...]:
        """What is dropped, without the scales through which others are read."""
        read = {
            (label, stored.name)
            for tensor in self.tensors
            for label, stored in zip(tensor.labels, tensor.inputs, strict=True)
        }
        return tuple(
            item
            for item in self.dropped
            if not all((label, item.name) in read for label in item.models)
        )

    @property
    def input_bytes(self) -> int:
        """Bytes of the stored tensors that are needed, each counted once a tensor it helps make."""
        return sum(stored.nbytes for tensor in self.tensors for stored in tensor.inputs)

    @property
    def output_bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def tensor(self, name: str) -> TensorPlan | None:
        """Return the plan of one output tensor, or None."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

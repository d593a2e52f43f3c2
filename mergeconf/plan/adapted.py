"""Which tensors does a model with an adapter give? Those that it changes are computed.

The product of an adapter's two matrices is never made whole: it is a part of the expression of
whatever uses the tensor. The result is rounded to the format of the model's own tensor, as if the
adapter had been merged into a folder first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergeconf.checkpoint import StoredTensor
from mergeconf.checkpoint.adapter import Adapter
from mergeconf.checkpoint.adapter_match import Change, Product, match_adapter, module_weights
from mergeconf.errors import PlanError, Problem, listed
from mergeconf.graph.lazy import as_f32
from mergeconf.graph.nodes import (
    Cast,
    ColumnMean,
    Elementwise,
    Input,
    LowRank,
    Node,
    PerColumn,
    PerRow,
    RowCombine,
)
from mergeconf.plan.alignment import EMBEDDINGS, TIED_TO_EMBEDDING, embedding_of, ties_embeddings
from mergeconf.plan.sources import Derived, Model, Source

_SHOWN = 3
"""Tensors named in one message."""
_TINY = 1e-30
"""Squares of lengths below this count as 0."""


def adapt(model: Model, adapter: Adapter, label: str) -> Model:
    """Return a model with an adapter.

    Args:
        model: The model.
        adapter: What is added to it.
        label: What messages call the result.

    Raises:
        PlanError: the adapter does not fit the model.
    """
    builder = _Builder(model, adapter)
    tensors = builder.tensors()
    if builder.problems:
        raise PlanError(builder.problems)
    config, files = model.config, model.files
    if builder.untied and config is not None:
        config = untied_config(config)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        files = {**files, "config.json": text.encode()}
    made = f"{model.made_by}, " if model.made_by else ""
    return replace(
        model,
        label=label,
        tensors=tensors,
        config=config,
        files=files,
        checkpoints=(*model.checkpoints, adapter.checkpoint),
        warnings=(*model.warnings, *adapter.checkpoint.warnings, *builder.warnings),
        made_by=f"{made}{_count(len(builder.changes))} adapted by {adapter.label}",
    )


def _count(tensors: int) -> str:
    return "1 tensor" if tensors == 1 else f"{tensors:,} tensors"


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that says that the head has weights of its own."""
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and "tie_word_embeddings" in value:
            changed[key] = {**value, "tie_word_embeddings": False}
    return {**changed, "tie_word_embeddings": False}


@dataclass(slots=True)
class _Builder:
    """Makes the tensors of one model with one adapter."""

    model: Model
    adapter: Adapter
    changes: dict[str, Change] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    untied: bool = False
    """Whether the model gets a head of its own."""
    _expressions: dict[object, Node] = field(default_factory=dict)

    def tensors(self) -> dict[str, Source]:
        """Return the tensors, those of a head that was not stored last."""
        own = self.model.tensors
        shapes = {name: tensor.shape for name, tensor in own.items()}
        heads = self._unstored_heads()
        shapes |= {head: own[embedding].shape for head, embedding in heads.items()}
        self.changes, self.problems = match_adapter(self.adapter, shapes)
        self._settle_ties(heads)
        tensors = dict(own)
        for name, change in self.changes.items():
            source = own[heads.get(name, name)]
            if not source.dtype.is_float:
                self._note(
                    f"{name} is stored as {source.dtype}, to which nothing can be added",
                    "convert the model to bfloat16 first",
                )
            elif change.magnitude is not None and len(source.shape) > 2:
                self._note(
                    f"has DoRA on {name}, a convolution, which is not supported",
                    "merge it into its model with peft (merge_and_unload), and name that folder",
                )
            elif not self.problems:
                tensors[name] = self._derived(name, source, change)
        return tensors

    def _note(self, message: str, hint: str) -> None:
        if len(self.problems) < _SHOWN:
            self.problems.append(Problem(message, where=self.adapter.label, hint=hint))

    # --- heads --------------------------------------------------------------------------------

    def _unstored_heads(self) -> dict[str, str]:
        """Return the embedding behind each head that the adapter knows and no file has."""
        tensors = self.model.tensors
        if any(name.endswith(TIED_TO_EMBEDDING) for name in tensors):
            return {}
        found = {}
        for name in module_weights(self.adapter):
            embedding = embedding_of(name, tensors) if name.endswith(TIED_TO_EMBEDDING) else None
            if embedding is not None:
                found[name] = embedding
        return found

    def _settle_ties(self, heads: Mapping[str, str]) -> None:
        if not heads and not ties_embeddings(self.model.config):
            return
        names = [name for name in self.changes if name.endswith(TIED_TO_EMBEDDING)]
        embeddings = {name: embedding_of(name, self.model.tensors) for name in names}
        if self.adapter.settings.tied:  # trained as one: the head follows
            for name in names:
                if embeddings[name] in self.changes:
                    del self.changes[name]
            names = [name for name in names if name in self.changes]
        elif not names:
            changed = [name for name in self.changes if name.endswith(EMBEDDINGS)]
            if changed:
                self._warn(
                    f"changes {listed(changed)}, to which the model ties its head: the head "
                    "changes with it, as where peft merges the adapter, and not as where it runs "
                    "beside the model"
                )
        if names:
            self.untied = True
            self._warn(
                f"changes {listed(names)}, which the model ties to its embedding: the output gets "
                "a head of its own"
            )

    def _warn(self, message: str) -> None:
        self.warnings.append(
            Problem(message, where=self.adapter.label, severity="warning", code="tied-adapter")
        )

    # --- expressions --------------------------------------------------------------------------

    def _derived(self, name: str, source: Source, change: Change) -> Derived:
        if isinstance(source, StoredTensor):
            source = Derived(
                name, source.dtype, source.shape, Input(0, source.dtype), (source,),
                (self.model.label,),
            )  # fmt: skip
            kind: object = source.dtype
        else:
            kind = id(source.expression)
        mine = _inputs_of(change)
        key = (kind, source.shape, _key_of(change))
        if key not in self._expressions:
            first = len(source.inputs)
            slots = [Input(first + slot, item.dtype) for slot, item in enumerate(mine)]
            self._expressions[key] = _expression(source, change, slots)
        return replace(
            source,
            name=name,
            expression=self._expressions[key],
            inputs=(*source.inputs, *mine),
            labels=(*source.labels, *[self.adapter.label] * len(mine)),
        )


def _inputs_of(change: Change) -> tuple[StoredTensor, ...]:
    """Return the adapter's tensors of one change, in the order of their slots."""
    product = change.product
    factors = () if product is None else (product.left.tensor, product.right.tensor)
    others = (change.saved, *factors, change.magnitude, change.offset)
    return tuple(tensor for tensor in others if tensor is not None)


def _key_of(change: Change) -> object:
    """Return what the expression of a change depends on, beside the model's tensor."""
    product = change.product
    return (
        change.saved is not None,
        tuple(tensor.dtype for tensor in _inputs_of(change)),
        None if product is None else (
            product.rank, product.width, product.left.transposed, product.right.transposed,
            product.scale,
        ),
        change.magnitude is not None,
        change.offset_scale,
    )  # fmt: skip


def _expression(source: Derived, change: Change, slots: list[Input]) -> Node:
    """Return a tensor with what the adapter adds, over the adapter's slots in their order."""
    rest = iter(slots)
    weight = source.expression
    if change.saved is not None:
        saved = next(rest)
        weight = saved if saved.dtype is source.dtype else Cast(saved, source.dtype, "stored")
    if change.product is None and change.offset is None:
        return weight
    value = as_f32(weight)
    if change.product is not None:
        value = _plus(value, _product(change.product, next(rest), next(rest)), change.product.scale)
    if change.magnitude is not None:
        rows, width = source.shape
        if change.by_columns:
            value = _by_columns(value, next(rest), rows, width)
        else:
            value = _by_rows(value, next(rest), width)
    if change.offset is not None:
        value = _plus(value, as_f32(next(rest)), change.offset_scale)
    return Cast(value, source.dtype, "stored")


def _product(product: Product, left: Input, right: Input) -> Node:
    return LowRank(
        left, right, product.rank, product.width, product.left.transposed, product.right.transposed
    )


def _plus(value: Node, delta: Node, scale: float) -> Node:
    if scale != 1.0:
        delta = Elementwise("mul", (delta, float(scale)), "f32")
    return Elementwise("add", (value, delta), "f32")


def _by_rows(value: Node, lengths: Input, width: int) -> Node:
    """Return a matrix whose rows have the lengths given."""
    unit = RowCombine((value,), (value,), inverse_length, (), width)
    return Elementwise("mul", (unit, PerRow(lengths, width)), "f32")


def _by_columns(value: Node, lengths: Input, rows: int, width: int) -> Node:
    """Return a matrix whose columns have the lengths given; a column of zeros stays one."""
    mean = ColumnMean(Elementwise("mul", (value, value), "f32"), rows, width)
    square = Elementwise("mul", (mean, float(rows)), "f32")
    length = Elementwise("sqrt", (Elementwise("maximum", (square, _TINY), "f32"),), "f32")
    factor = Elementwise("div", (PerColumn(lengths), length), "f32")
    return Elementwise("mul", (value, factor), "f32")


def inverse_length(square: float) -> tuple[float]:
    """Return 1 / ‖row‖ from ‖row‖²; a row of zeros stays one."""
    return (1 / math.sqrt(square) if square > 0 else 0.0,)

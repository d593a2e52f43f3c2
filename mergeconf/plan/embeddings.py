"""How is a model's embedding over the output's tokens computed from the models' embeddings?

Rows that the model has are read at their new places; rows that it lacks are filled as
`output_vocabulary.fill` says. Filled rows are computed in float32 and rounded once to the model's
own format, as if the model had been stored that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergeconf.dtypes import DType
from mergeconf.graph.gather import gathered
from mergeconf.graph.lazy import as_f32, elementwise
from mergeconf.graph.nodes import Cast, Choose, ColumnMean, Input, Node, RowMask, stored_dtype
from mergeconf.graph.rewrite import interned, substitute
from mergeconf.graph.rows import ABSENT, Rows
from mergeconf.graph.walk import walk
from mergeconf.plan.output_vocabulary import MEAN, Fill, RowArray
from mergeconf.plan.sources import Bound


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of the output, and what the models have of them."""

    maps: tuple[RowArray, ...]
    """For each model that a tensor is merged from: its row for each id, or `ABSENT`."""
    fill: Fill
    end: int
    """The id after the last one."""
    rows: int
    """Rows of the output; those from `end` on belong to no token."""


def embedding_over(
    nodes: Sequence[Node], own: Node, own_map: RowArray, layout: Layout, width: int
) -> Node:
    """Return one model's embedding over the output's tokens, as stored bits in its format.

    Rows without a token are the mean of all rows, as mergekit makes them.

    Args:
        nodes: The embeddings of the models of `layout.maps`, as stored bits.
        own: The model's embedding.
        own_map: Its row for each id, or `ABSENT`.
        layout: The output's rows.
        width: Elements of a row.

    Raises:
        CannotGather: an embedding is itself computed, and not row by row.
    """
    dtype = stored_dtype(own)
    having = (own_map >= 0) & ~layout.fill.forced
    filling = _Filling(nodes, layout, width, ~having)
    found = gathered(own, filling.rows(np.where(having, own_map, ABSENT)), width)
    for donor in np.unique(layout.fill.donors[~having]).tolist():
        if donor >= 0:
            rows, part = filling.of(donor)
            found = Choose(RowMask(rows, width), _in_format(part, dtype), found, dtype)
        elif donor == MEAN:
            for rows, mean in filling.means():
                found = Choose(RowMask(rows, width), _rounded(mean, dtype), found, dtype)
    if layout.rows > layout.end:
        numbers = np.full(layout.rows, ABSENT, np.int32)
        numbers[layout.end :] = 0
        mean = ColumnMean(as_f32(found), layout.end, width)
        found = Choose(RowMask(Rows(numbers), width), _rounded(mean, dtype), found, dtype)
    return found


@dataclass(frozen=True, slots=True)
class _Filling:
    """What other models give in the place of rows that one lacks."""

    nodes: Sequence[Node]
    layout: Layout
    width: int
    lacking: np.typing.NDArray[np.bool_]

    def rows(self, numbers: RowArray) -> Rows:
        """Return rows of the output's length; those without a token are absent."""
        padded = np.full(self.layout.rows, ABSENT, np.int32)
        padded[: len(numbers)] = numbers
        return Rows(padded)

    def of(self, donor: int) -> tuple[Rows, Node]:
        """Return the rows that one model gives."""
        fill = self.layout.fill
        numbers = np.where(self.lacking & (fill.donors == donor), fill.rows, ABSENT)
        rows = self.rows(numbers)
        return rows, gathered(self.nodes[donor], rows, self.width)

    def means(self) -> list[tuple[Rows, Node]]:
        """Return the rows that are means, by the number of models that have them."""
        wanted = self.lacking & (self.layout.fill.donors == MEAN)
        count = np.zeros(self.layout.end, np.int32)
        total: Node | None = None
        for node, each in zip(self.nodes, self.layout.maps, strict=True):
            count += each >= 0
            numbers = np.where(wanted, each, ABSENT)
            if not (numbers >= 0).any():
                continue
            part = as_f32(gathered(node, self.rows(numbers), self.width))
            total = part if total is None else elementwise("add", total, part)
        assert total is not None
        found = []
        for number in np.unique(count[wanted]).tolist():
            rows = self.rows(np.where(wanted & (count == number), 0, ABSENT))
            found.append((rows, elementwise("div", total, float(number))))
        return found


def _in_format(node: Node, dtype: DType) -> Node:
    return node if stored_dtype(node) is dtype else _rounded(as_f32(node), dtype)


def _rounded(node: Node, dtype: DType) -> Node:
    return Cast(node, dtype, "stored")


def compacted(root: Node, bound: Bound) -> tuple[Node, tuple[int, ...]]:
    """Return an expression over only those input slots that it reads, and these slots."""
    root = interned(root)
    slots = sorted({node.slot for node in walk(root) if isinstance(node, Input)})
    new = {slot: Input(i, bound.inputs[slot].dtype) for i, slot in enumerate(slots)}
    return substitute(root, new), tuple(slots)

"""Take rows of an expression: the taking is moved down to the inputs, which are read by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mergeconf.graph.lazy import as_f32, elementwise
from mergeconf.graph.nodes import (
    Agreed,
    AnyNode,
    Cast,
    Choose,
    Elementwise,
    Gather,
    Input,
    LowRank,
    Node,
    Observe,
    PerBlock,
    PerRow,
    Random,
    RankShare,
    RowCombine,
    RowDivergence,
    RowMask,
    stored_dtype,
)
from mergeconf.graph.rewrite import rebuilt
from mergeconf.graph.rows import ABSENT, Rows


class CannotGather(ValueError):
    """The rows of an expression cannot be computed one by one; the message says why."""


def gathered(root: Node, rows: Rows, width: int) -> Node:
    """Return the expression of a tensor that is made of rows of another one.

    Args:
        root: Stored bits of the other tensor.
        rows: The row of the other tensor for each row; absent ones get bits of 0.
        width: Elements of a row.

    Raises:
        CannotGather: what the expression computes is of the whole tensor, or drawn at random.
    """

    def change(node: AnyNode) -> AnyNode:
        match node:
            case Input():
                return Gather(node, rows, width)
            case Gather(x=Gather() as inner):  # its input has become a gather itself
                return Gather(inner.x, node.rows.of(rows), width)
            case RowMask():
                return RowMask(node.rows.of(rows), width)
            case Cast() | Elementwise() | Choose() | Agreed() | Observe():
                return node
            case RankShare() | RowCombine() | RowDivergence() if node.row == width:
                return node
            case LowRank() | PerRow() | PerBlock() if node.width == width:
                return _by_row(node, rows if node.rows is None else node.rows.of(rows))
            case Random():
                raise CannotGather("is drawn at random, element by element")
        raise CannotGather("needs the whole tensor at once")

    if isinstance(root, Input):
        return Gather(root, rows, width)
    found = rebuilt(root, change)
    if not (rows.numbers == ABSENT).any():
        return found
    absent = zeros(found, len(rows), width)
    return Choose(RowMask(rows, width), found, absent, stored_dtype(found))


def _by_row(node: LowRank | PerRow | PerBlock, rows: Rows) -> Node:
    """Return rows of what is made from inputs that are kept whole: these stay as they are."""
    if isinstance(node, (PerRow, PerBlock)):
        return replace(node, x=_whole(node.x), rows=rows)
    return replace(node, left=_whole(node.left), right=_whole(node.right), rows=rows)


def _whole(x: Node) -> Input:
    """Return an input that has become a gather with all others."""
    inner = x.x if isinstance(x, Gather) else x
    assert isinstance(inner, Input)
    return inner


def zeros(like: Node, rows: int, width: int) -> Node:
    """Return bits of 0 in the format of stored bits.

    Args:
        like: Stored bits of the same shape.
        rows: Of the tensor.
        width: Elements of a row.
    """
    nowhere = RowMask(Rows(np.full(rows, ABSENT)), width)
    return Cast(elementwise("only", nowhere, as_f32(like)), stored_dtype(like), "stored")

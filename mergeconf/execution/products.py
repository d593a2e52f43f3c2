"""Values made from inputs that are kept whole: products of small matrices, a number a row or block.

Why no BLAS: its sums depend on the processor and on the shape of the piece. A product of rank r is
r updates by a column and a row instead, each a multiplication and an addition of float32 arrays
that stay in the cache. Measured on one core of a server (AMD EPYC, numpy 2.4), ns an element and
rank: 0.27 for rows of 1,024 elements and more, 0.32 for 512, 0.55 for 128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mergeconf.checkpoint import ReadFiles, StoredTensor
from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError, Problem
from mergeconf.execution.float8 import FromCodes
from mergeconf.execution.kernels import Array
from mergeconf.execution.row_tiles import fill_columns
from mergeconf.graph.nodes import Expanded, LowRank, PerBlock, PerColumn, PerRow
from mergeconf.graph.rows import ABSENT, Rows

PIECE = 1 << 15
"""Elements of a product that are updated at a time, so that they and the terms fit the L2 cache."""
_UNBUFFERED = 256
"""Size of numpy's buffers: with its own, 8,192, it copies what is spread over rows of less than
4,096 elements, which takes twice the time (0.52 ns)."""
_LINES = 1 << 11
"""Values of blocks, about, that are looked up at a time."""


class Whole:
    """The whole inputs of one tensor, as float32, and what is made from them."""

    def __init__(
        self, nodes: Sequence[Expanded], inputs: Sequence[StoredTensor], reads: ReadFiles
    ) -> None:
        self._matrices: Mapping[int, tuple[Array, ...]] = {
            id(node): _load(node, inputs, reads) for node in nodes
        }

    def fill(self, node: Expanded, start: int, out: Array) -> None:
        """Compute a stretch of the tensor, from element `start` on."""
        first, *rest = self._matrices[id(node)]
        match node:
            case LowRank():
                fill_product(first, rest[0], start, out)
            case PerRow():
                fill_rows(first, node.width, start, out)
            case PerColumn():
                fill_columns(first, start, out)
            case PerBlock():
                fill_blocks(first, node, start, out)


def whole_bytes(nodes: Sequence[Expanded], inputs: Sequence[StoredTensor]) -> int:
    """Return an upper bound of what `Whole` holds for a tensor, in bytes, loading included."""
    held, most = 0, 0
    for node in nodes:
        for slot in _slots(node):
            stored = inputs[slot]
            held += 4 * stored.numel
            if isinstance(node, (LowRank, PerRow)) and node.rows is not None:
                held += 4 * len(node.rows) * (node.rank if isinstance(node, LowRank) else 1)
            most = max(most, stored.nbytes + 5 * stored.numel)
    return held + most


def _slots(node: Expanded) -> tuple[int, ...]:
    return (node.left.slot, node.right.slot) if isinstance(node, LowRank) else (node.x.slot,)


def _load(node: Expanded, inputs: Sequence[StoredTensor], reads: ReadFiles) -> tuple[Array, ...]:
    if isinstance(node, PerColumn):
        return (_read(inputs[node.x.slot], reads),)
    if isinstance(node, PerBlock):
        values = _read(inputs[node.x.slot], reads, exponents=node.exponents, scales=True)
        return (values.reshape(-1, max(1, _across(node))),)
    if isinstance(node, PerRow):
        return (_taken(_read(inputs[node.x.slot], reads), node.rows),)
    left, right = (_read(inputs[slot], reads) for slot in _slots(node))
    left = left.reshape(node.rank, -1).T if node.left_transposed else left.reshape(-1, node.rank)
    right = right.reshape(-1, node.rank).T if node.right_transposed else right
    left = _taken(left, node.rows)
    return np.ascontiguousarray(left), np.ascontiguousarray(right.reshape(node.rank, -1))


def _taken(values: Array, rows: Rows | None) -> Array:
    """Return rows in the order asked for; absent ones are 0."""
    if rows is None:
        return values
    taken: Array = values[np.maximum(rows.numbers, 0)]
    taken[rows.numbers == ABSENT] = 0
    return taken


def _read(
    stored: StoredTensor, reads: ReadFiles, *, exponents: bool = False, scales: bool = False
) -> Array:
    """Return all of a stored tensor, flat, as float32.

    Args:
        stored: The tensor.
        reads: Reads it.
        exponents: Whether it holds exponents of 2.
        scales: Whether it belongs to quantized weights; else to an adapter.
    """
    raw = np.empty(stored.numel, stored.dtype.numpy)
    reads.read_into(stored, 0, raw.view(np.uint8).data)
    match DType.float8_e8m0fnu if exponents else stored.dtype:
        case DType.float8_e8m0fnu:
            values: Array = np.empty(len(raw), np.float32)
            FromCodes(DType.float8_e8m0fnu)(raw, values)
        case DType.float32:
            values = raw
        case DType.bfloat16:
            bits = raw.astype("<u4")
            np.left_shift(bits, 16, out=bits)
            values = bits.view("<f4")
        case DType.float16:
            values = raw.view("<f2").astype("<f4")
        case _:
            values = raw.astype("<f4")
    if not np.isfinite(values).all():
        raise ExecutionError(
            Problem("holds NaN or infinity", where=f"{stored.file}: {stored.name}",
                    hint="the model is broken: download it again, or quantize it again" if scales
                    else "the adapter is broken: its training has diverged")
        )  # fmt: skip
    return values


def fill_product(left: Array, right: Array, start: int, out: Array) -> None:
    """Fill `out` with the elements of left · right, row by row, from element `start` on.

    Args:
        left: rows × rank, float32.
        right: rank × width, float32.
        start: First element that is wanted; it may lie inside a row.
        out: Takes as many elements as it has; they may end inside a row.
    """
    before = np.setbufsize(_UNBUFFERED)
    try:
        _fill_stretch(left, right, start, out)
    finally:
        np.setbufsize(before)


def _fill_stretch(left: Array, right: Array, start: int, out: Array) -> None:
    width = right.shape[1]
    done, size = 0, len(out)
    while done < size:
        row, column = divmod(start + done, width)
        if column or size - done < width:  # part of a row
            end = min(width, column + size - done)
            _fill_block(left[row : row + 1], right[:, column:end], out[done:][None, : end - column])
            done += end - column
        else:
            rows = (size - done) // width
            block = out[done : done + rows * width].reshape(rows, width)
            _fill_block(left[row : row + rows], right, block)
            done += rows * width


def _fill_block(left: Array, right: Array, out: Array) -> None:
    """Compute left · right piece by piece."""
    rows, width = out.shape
    columns = min(width, PIECE)
    step = max(1, PIECE // columns)
    terms = np.empty((min(step, rows), columns), np.float32)
    for top in range(0, rows, step):
        for begin in range(0, width, columns):
            part = out[top : top + step, begin : begin + columns]
            _update(
                left[top : top + step], right[:, begin : begin + columns], part,
                terms[: part.shape[0], : part.shape[1]],
            )  # fmt: skip


def _update(left: Array, right: Array, out: Array, terms: Array) -> None:
    np.multiply(left[:, :1], right[0], out=out)
    for index in range(1, left.shape[1]):
        np.multiply(left[:, index : index + 1], right[index], out=terms)
        np.add(out, terms, out=out)


def fill_rows(values: Array, width: int, start: int, out: Array) -> None:
    """Fill `out` with values[element // width], from element `start` on."""
    first, skip = divmod(start, width)
    count = math.ceil((skip + len(out)) / width)
    if count == 1:
        out[:] = values[first]
        return
    head = min(width - skip, len(out))
    out[:head] = values[first]
    rows = (len(out) - head) // width
    middle = out[head : head + rows * width].reshape(rows, width)
    middle[...] = values[first + 1 : first + 1 + rows, None]
    if head + rows * width < len(out):
        out[head + rows * width :] = values[first + 1 + rows]


def fill_blocks(values: Array, node: PerBlock, start: int, out: Array) -> None:
    """Fill `out` with the value of each element's block, from element `start` on.

    Args:
        values: A line for each row of blocks, of as many values as there are blocks side by side.
        node: What is a block.
        start: First element that is wanted; it may lie inside a row.
        out: Takes as many elements as it has; they may end inside a row.
    """
    width, columns = node.width, node.block[1]
    most = max(1, _LINES // values.shape[1], PIECE // max(width, 16))
    whole = width // columns * columns
    done, size = 0, len(out)
    while done < size:
        row, column = divmod(start + done, width)
        if column or size - done < width:  # part of a row
            end = min(width, column + size - done)
            line = values[_lines_of(node, row, 1)[0]]
            fill_rows(line, columns, column, out[done : done + end - column])
            done += end - column
            continue
        rows = min(most, (size - done) // width)
        lines = values[_lines_of(node, row, rows)]
        block = out[done : done + rows * width].reshape(rows, width)
        inner = block[:, :whole].reshape(rows, -1, columns)  # a view: only an axis is split
        inner[...] = lines[:, : whole // columns, None]
        block[:, whole:] = lines[:, -1:]
        done += rows * width


def _across(node: PerBlock) -> int:
    """Return the number of blocks side by side."""
    return -(-node.width // node.block[1])


def _lines_of(node: PerBlock, first: int, count: int) -> Array:
    """Return the row of blocks in which each of some rows lies."""
    rows: Array = np.arange(first, first + count)
    if node.rows is not None:
        rows = np.maximum(node.rows.numbers[first : first + count], 0)
    matrix, row = np.divmod(rows, node.height)
    lines: Array = matrix * -(-node.height // node.block[0]) + row // node.block[0]
    return lines

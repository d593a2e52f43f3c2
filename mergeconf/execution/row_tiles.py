"""Tiles of tensors whose rows are taken from others: gathered rows, masks of rows, column means.

Rows that follow each other in the input are read at once, so that a list of rows which is mostly
the input's own order costs no more than a plain read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from mergeconf.checkpoint import StoredTensor
from mergeconf.execution.kernels import Array
from mergeconf.graph.nodes import ColumnMean, Gather, RowMask
from mergeconf.graph.rows import Rows

Read = Callable[[StoredTensor, int, memoryview], None]

_COARSE, _FINE = 20, 60
"""Column sums are held in multiples of 2^-20, and what is left over in multiples of 2^-60."""
_LARGEST = float(1 << 20)
PIECE = 1 << 13
"""Elements that are added at a time."""


def fill_gathered(node: Gather, stored: StoredTensor, start: int, view: Array, read: Read) -> None:
    """Fill `view` with the elements from `start` on of the rows that a node takes of its input."""
    size = stored.dtype.itemsize
    for begin, end, source in _stretches(node.rows, node.width, start, len(view)):
        part = view[begin:end]
        if source < 0:
            part.fill(0)
        else:
            read(stored, source * size, part.view(np.uint8).data)


def fill_row_mask(node: RowMask, start: int, view: Array) -> None:
    """Fill `view` with whether there is a row, from element `start` on."""
    for begin, end, source in _stretches(node.rows, node.width, start, len(view)):
        view[begin:end].fill(source >= 0)


def _stretches(rows: Rows, width: int, start: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield pieces of a tile that lie together in the input: first and last element in the tile,
    the last one excluded, and the first element in the input, or -1 where there is no row."""
    starts, sources = rows.runs
    run = int(np.searchsorted(starts, start // width, "right")) - 1
    at = start
    while at < start + size:
        first = int(starts[run])
        following = int(starts[run + 1]) if run + 1 < len(starts) else len(rows)
        end = min(start + size, following * width)
        source = int(sources[run])
        place = -1 if source < 0 else (source - first) * width + at
        yield at - start, end - start, place
        at, run = end, run + 1


def fill_columns(columns: Array, start: int, view: Array) -> None:
    """Fill `view` with one value a column, from element `start` on."""
    width = len(columns)
    head = min(-start % width, len(view))
    view[:head] = columns[width - (-start % width) :][:head]
    rows = (len(view) - head) // width
    view[head : head + rows * width].reshape(rows, width)[...] = columns
    rest = head + rows * width
    view[rest:] = columns[: len(view) - rest]


def column_pieces(start: int, values: Array, width: int) -> Iterator[tuple[int, Array]]:
    """Yield values, from element `start` on, as matrices of some rows and columns.

    Each comes with its first column; it has `PIECE` elements at most.
    """
    at, end = 0, len(values)
    while at < end:
        column = (start + at) % width
        if column or end - at < width or width > PIECE:
            count, rows = min(width - column, end - at, PIECE), 1
        else:
            count, rows = width, min(end - at, PIECE) // width
        yield column, values[at : at + rows * count].reshape(rows, count)
        at += rows * count


class ColumnReducer:
    """The mean of each column over the first rows, from all elements of a tensor."""

    def __init__(self, node: ColumnMean) -> None:
        self._width = node.width
        self._end = node.rows * node.width
        self._rows = node.rows
        self._sums = np.zeros((2, node.width), np.int64)
        self._broken = np.zeros(node.width, bool)
        self._lock = threading.Lock()

    def update(self, start: int, values: Array, size: int) -> None:
        """Take the values of elements `start` to `start + size - 1`; thread-safe."""
        end = min(start + size, self._end)
        for column, piece in column_pieces(start, values[: max(0, end - start)], self._width):
            self._take(piece, column)

    def _take(self, piece: Array, column: int) -> None:
        wide = piece.astype(np.float64)
        broken = ~(np.abs(wide) < _LARGEST)  # too large, infinite or NaN
        if broken.any():
            wide[broken] = 0.0
        coarse = np.rint(wide * (1 << _COARSE))
        rest = np.rint((wide - coarse / (1 << _COARSE)) * (1 << _FINE))
        sums = np.stack([part.astype(np.int64).sum(axis=0) for part in (coarse, rest)])
        columns = slice(column, column + piece.shape[1])
        with self._lock:
            self._sums[:, columns] += sums
            self._broken[columns] |= broken.any(axis=0)

    def finish(self) -> float:
        """Return nothing of use: the means are read by `columns`."""
        return 0.0

    def columns(self) -> Array:
        """Return the means as float32."""
        coarse, rest = self._sums.astype(np.float64)
        total = coarse / (1 << _COARSE) + rest / (1 << _FINE)
        means = (total / max(1, self._rows)).astype(np.float32)
        means[self._broken] = np.nan
        return means

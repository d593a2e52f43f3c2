"""Dot products of columns, and the numbers that a function makes of them for each column.

A column goes through all tiles of a tensor, and tiles come in any order. So the products are added
in whole numbers, which no order changes: each is cut into digits of 36 bits, which fit the integers
that add them up to 2^27 rows.
"""

from __future__ import annotations

import threading

import numpy as np

from mergeconf.execution.kernels import Array
from mergeconf.execution.row_tiles import PIECE, column_pieces
from mergeconf.graph.nodes import ColumnCompute, ColumnDot

_DIGIT = 36
"""Bits of a digit. A sum of one digit over the 2^13 elements of a piece is exact in float64."""
_LOWEST = -84
_DIGITS = tuple(2.0 ** (_LOWEST + _DIGIT * place) for place in (3, 2, 1, 0))
"""What one unit of each digit is worth, the largest first: 2^24 to 2^-84."""
_LARGEST = 2.0**60
"""Products from here on have no place."""
BYTES_PER_COLUMN = 8 * len(_DIGITS) + 1 + 8
"""What a dot product takes while it is summed and then known, in bytes a column."""


class ColumnDotReducer:
    """The sum of each column of a tensor of products: see `ColumnDot`."""

    def __init__(self, node: ColumnDot) -> None:
        self._width = node.width
        self._sums = np.zeros((len(_DIGITS), node.width), np.int64)
        self._broken = np.zeros(node.width, bool)
        self._lock = threading.Lock()

    def update(self, start: int, values: Array, size: int) -> None:
        """Take the products of elements `start` to `start + size - 1`; thread-safe."""
        for column, piece in column_pieces(start, values[:size], self._width):
            self._take(piece, slice(column, column + piece.shape[1]))

    def _take(self, piece: Array, columns: slice) -> None:
        largest = np.abs(piece).max()
        broken: Array | None = None
        if not largest < _LARGEST:  # too large, infinite or NaN
            broken = ~(np.abs(piece) < _LARGEST)
            piece = np.where(broken, 0.0, piece)
        found = []
        rest = piece
        for place, unit in enumerate(_DIGITS):
            if largest <= unit / 2:
                continue  # the digit is 0 everywhere
            digit = np.rint(rest * (1 / unit))
            found.append((place, digit.sum(axis=0).astype(np.int64)))
            rest = rest - digit * unit
            if not rest.any():
                break
        with self._lock:
            for place, sums in found:
                self._sums[place, columns] += sums
            if broken is not None:
                self._broken[columns] |= broken.any(axis=0)

    def finish(self) -> float:
        """Return nothing of use: the sums are read by `columns`."""
        return 0.0

    def columns(self) -> Array:
        """Return the sums, each rounded once to float64."""
        found = np.empty(self._width)
        for begin in range(0, self._width, PIECE):
            part = slice(begin, begin + PIECE)
            totals = zip(*self._sums[:, part].tolist(), strict=True)
            found[part] = [_number(digits) for digits in totals]
        found[self._broken] = np.nan
        return found


def _number(digits: tuple[int, ...]) -> float:
    total = 0
    for digit in digits:
        total = (total << _DIGIT) + digit
    return total / (1 << -_LOWEST)


def compute_columns(node: ColumnCompute, args: list[Array]) -> Array:
    """Return what the function gives for each column, as float32: size × width.

    Args:
        node: Has the function, which is called once a column.
        args: The dot products, an array of one number a column for each.
    """
    found = np.empty((node.size, node.width), np.float32)
    for begin in range(0, node.width, PIECE):
        part = slice(begin, begin + PIECE)
        numbers = zip(*(arg[part].tolist() for arg in args), strict=True)
        values = [node.function(*column, *node.options) for column in numbers]
        found[:, part] = np.array(values).T
    return found

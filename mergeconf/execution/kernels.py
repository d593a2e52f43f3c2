"""Element-wise kernels over preallocated numpy arrays, and why each is the one it is.

Only operations that IEEE 754 defines exactly are used (add, multiply, divide, square root,
comparison, conversion) and integer arithmetic on bits, so results do not depend on the
processor's vector extensions. Measured on one core of a server (AMD EPYC, numpy 2.4, tiles of
65,536, ns an element): numpy float32 add 0.12, int16 xor 0.06, compare to bool 0.05 to 0.09,
bfloat16 to float32 by widening and shifting 0.12 (torch the same), back with rounding 0.6 (torch
0.1, but importing torch takes 0.9 s and 190 MB, more than the difference over a billion
elements); `copyto(where=)` 3.8 and torch's `where` 0.8, so masks are applied by and / xor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mergeconf.dtypes import DType
from mergeconf.graph.shares import RESOLUTION

Array = npt.NDArray[Any]

_SHIFT = np.uint32(16)
_ONE = np.uint32(1)
_HALF = np.uint32(0x7FFF)
_CANONICAL_NAN = np.uint32(0x7FC00000)

LIMIT_BITS = {
    DType.bfloat16: 0x7F7F8000,
    DType.float16: 0x477FF000,
    DType.float32: 0x7F800000,
    DType.float64: 0x7F800000,
}
"""Smallest float32 magnitude, as bits, that a format cannot hold as a finite number."""


def widen(source: Array, out: Array) -> None:
    """Convert to a type that holds every value of the source's."""
    np.copyto(out, source)


def narrow(source: Array, out: Array) -> None:
    """Convert to a smaller type: integers keep their low bits, floats round to nearest even."""
    np.copyto(out, source, casting="unsafe")


def mask_bytes(mask: Array, out: Array) -> None:
    """Turn true into a byte of ones: (int8 view of bool) 1 becomes -1, 0 stays."""
    np.negative(mask, out)


def bfloat16_to_float32(source: Array, out: Array) -> None:
    """Convert uint16 bits of bfloat16 to uint32 bits of float32."""
    np.copyto(out, source)
    np.left_shift(out, _SHIFT, out)


def float32_to_bfloat16(source: Array, scratch: Array, out: Array) -> None:
    """Round uint32 bits of float32 to uint16 bits of bfloat16, ties to even; NaN is excluded."""
    np.right_shift(source, _SHIFT, scratch)
    np.bitwise_and(scratch, _ONE, scratch)
    np.add(scratch, _HALF, scratch)
    np.add(scratch, source, scratch)
    np.right_shift(scratch, _SHIFT, scratch)
    np.copyto(out, scratch, casting="unsafe")


def any_float32_to_bfloat16(source: Array, scratch: Array, out: Array) -> None:
    """Round as `float32_to_bfloat16`, with NaN among the values."""
    if is_suspect(source, 0x7F800001):
        source = source.copy()
        settle_nan(source)
    float32_to_bfloat16(source, scratch, out)


def minimum(x: Array, y: Array, out: Array) -> None:
    """Return the smaller value; NaN stays."""
    np.minimum(x, y, out=out)  # numpy refuses `out` by position for this one and the next


def maximum(x: Array, y: Array, out: Array) -> None:
    """Return the larger value; NaN stays."""
    np.maximum(x, y, out=out)


def is_suspect(bits: Array, limit: int) -> bool:
    """Tell whether any float32, given as uint32 bits, has a magnitude of at least `limit`."""
    if bits.size == 0:
        return False
    return bool(bits.view(np.int32).max() >= limit or bits.max() >= limit + 0x80000000)


def settle_nan(bits: Array) -> None:
    """Give every NaN among float32 bits (uint32) the same sign and payload, in place."""
    bits[(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)] = _CANONICAL_NAN


def is_finite(stored: Array, dtype: DType) -> Array:
    """Return which stored values are finite; whole numbers always are."""
    match dtype:
        case DType.bfloat16:
            finite: Array = (stored & 0x7F80) != 0x7F80
        case DType.float16:
            finite = (stored & 0x7C00) != 0x7C00
        case _:
            finite = np.isfinite(stored)
    return finite


# --- rows ------------------------------------------------------------------------------------

ROW_PIECE = 1 << 14
"""Elements, about, that row kernels work on at a time: whole rows whose scratch stays in the cache."""
_FINE = 14
"""Low bits of a float32 that a histogram of magnitudes leaves out: differences of bfloat16 numbers
seldom have them (measured on fine-tunes: in 0.1 to 0.8 % of the elements)."""
_LARGEST_KEY = np.uint32(0x7F800001)
_MOST_BINS_PER_ELEMENT = 4
_LONGEST_TABLE = 1 << 16


def row_pieces(size: int, row: int) -> Iterator[tuple[int, int]]:
    """Cut a tile into pieces of whole rows: first and last element, the last one excluded."""
    step = max(1, ROW_PIECE // row) * row
    for begin in range(0, size, step):
        yield begin, min(begin + step, size)


class RankThresholds:
    """Turns magnitudes (bits of float32) into thresholds for draws, by their rank in their row.

    Ranks are exact. A histogram of the upper 17 bits gives them where no two different values of a
    row share a bin; the few elements that do are sorted, and all are where most do. Measured on
    one core, rows of 4,096: 4 ns an element for differences of bfloat16, 25 for float32.
    """

    def __init__(self, row: int, density: float, epsilon: float) -> None:
        self._row, self._density, self._epsilon = row, density, epsilon
        self._table = self._thresholds(np.arange(2 * row - 1)) if row <= _LONGEST_TABLE else None

    def __call__(self, bits: Array, out: Array) -> None:
        """Fill `out` (uint16); both hold whole rows."""
        for begin, end in row_pieces(len(bits), self._row):
            keys = np.minimum(bits[begin:end], _LARGEST_KEY)
            if not self._by_histogram(keys, out[begin:end]):
                rows = np.arange(len(keys) // self._row).repeat(self._row)
                self._look_up(_twice_rank_sorted(rows, keys, self._row), out[begin:end])

    def _by_histogram(self, keys: Array, out: Array) -> bool:
        row, count = self._row, len(keys)
        smallest = int(np.subtract(keys, _ONE).min()) + 1  # 0 becomes the largest
        lowest = (smallest & 0xFFFFFFFF) >> _FINE
        bins = max(0, (int(keys.max()) >> _FINE) - lowest) + 2  # the first for 0 alone
        if bins * (count // row) > _MOST_BINS_PER_ELEMENT * count:
            return False
        places = (keys >> np.uint32(_FINE)).astype(np.intp)
        np.subtract(places, lowest - 1, out=places)
        np.maximum(places, 0, out=places)
        by_row = places.reshape(-1, row)
        by_row += (np.arange(count // row) * bins)[:, None]
        counts = np.bincount(places, minlength=count // row * bins)
        shared = self._shared(keys, places, len(counts))
        if 2 * len(shared) > count:
            return False
        ends = np.cumsum(counts)
        twice = 2 * ends - counts - 1
        by_bin = twice.reshape(-1, bins)
        by_bin -= (2 * row * np.arange(count // row))[:, None]
        thresholds = np.empty(len(counts), np.uint16)
        self._look_up(twice, thresholds)
        np.take(thresholds, places, out=out, mode="clip")
        if len(shared):
            inside = _twice_rank_sorted(places[shared], keys[shared], None)
            first = twice - counts + 1  # twice the first rank of the bin
            fixed = np.empty(len(shared), np.uint16)
            self._look_up(inside + first[places[shared]], fixed)
            out[shared] = fixed
        return True

    def _shared(self, keys: Array, places: Array, bins: int) -> Array:
        """Return the elements of the bins that may hold different values."""
        uneven = np.flatnonzero(keys & np.uint32((1 << _FINE) - 1))
        if len(uneven) == 0 or 2 * len(uneven) > len(keys):
            return uneven
        is_shared = np.zeros(bins, bool)
        is_shared[places[uneven]] = True
        return np.flatnonzero(is_shared[places])

    def _look_up(self, twice: Array, out: Array) -> None:
        if self._table is None:
            out[:] = self._thresholds(twice)
        else:
            np.take(self._table, twice, out=out, mode="clip")

    def _thresholds(self, twice: Array) -> Array:
        """Return `shares.rank_threshold` of an array."""
        last = self._row - 1
        offset = (twice - last) / last if last else np.zeros(len(twice))
        shares = np.rint((self._density + self._epsilon * offset) * RESOLUTION)
        return np.clip(shares, 1, RESOLUTION - 1).astype(np.uint16)


def _twice_rank_sorted(groups: Array, keys: Array, row: int | None) -> Array:
    """Return the lowest plus the highest rank, from 0, of equal keys within their group.

    By sorting digits of 16 bits, the lowest first: numpy sorts those by radix, and stably.

    Args:
        groups: Group of each element, below 2^32.
        keys: uint32.
        row: Size of the groups, which then lie side by side; None where they differ.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    digits = [keys >> np.uint32(16)]
    most = int(groups.max())
    digits += [groups >> shift for shift in (0, 16) if most >> shift]
    for digit in digits:
        part = digit.astype(np.uint16)[order]
        order = order[np.argsort(part, kind="stable")]
    keys, groups = keys[order], groups[order]
    is_first = np.empty(len(keys), bool)
    is_first[0] = True
    new_group = groups[1:] != groups[:-1]
    np.logical_or(keys[1:] != keys[:-1], new_group, out=is_first[1:])
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(keys))
    if row is None:
        begins = np.searchsorted(groups, groups[starts])
    else:
        begins = groups[starts] * row
    twice = np.empty(len(keys), np.intp)
    twice[order] = np.repeat(starts + ends - 1 - 2 * begins, ends - starts)
    return twice

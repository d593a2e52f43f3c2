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

import functools
from collections.abc import Callable, Iterator, Sequence
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
        case DType.float8_e4m3fn:
            finite = (stored & 0x7F) != 0x7F
        case DType.float8_e5m2:
            finite = (stored & 0x7C) != 0x7C
        case _:
            finite = np.isfinite(stored)
    return finite


# --- rows ------------------------------------------------------------------------------------

ROW_PIECE = 1 << 15
"""Elements, about, that row kernels work on at a time: whole rows, whose scratch stays in the
cache while the cost of a call is spread over many elements."""
_WIDE_PIECE = 1 << 15
"""Elements, about, of float64 that are worked on at a time."""
_MOST_ROWS = 1 << 11
"""Rows whose coefficients are computed at a time, as Python floats."""
_LANES = 512
_SHORT = 64
"""Elements of a row up to which arrays are gone through by columns."""
_LARGEST_KEY = 0x7F800001
"""What stands for every NaN among magnitudes: all count as equal, and as the largest."""


def row_pieces(size: int, row: int, most: int = ROW_PIECE) -> Iterator[slice]:
    """Cut a tile into pieces of whole rows, of at most `most` elements or one row."""
    step = max(1, most // row) * row
    for begin in range(0, size, step):
        yield slice(begin, min(begin + step, size))


class KeepByRank:
    """Tells which draws lie below thresholds that grow with the rank of a value in its row.

    A draw u is below the threshold of a value where the value's rank is at least some r(u), and
    that is so where the value is at least the one of rank r(u): rows are sorted, but no rank is
    ever looked up. `nodes.RankShare` says what the thresholds are. Measured on one core of a
    server (AMD EPYC, numpy 2.4, AVX2): 7 to 9 ns an element for rows of 128 to 4,096, half of it
    the sorting.
    """

    def __init__(self, row: int, density: float, epsilon: float) -> None:
        row = self._row = max(row, 1)  # an empty tensor has no tile
        self._step = max(1, ROW_PIECE // row) * row
        wanted = _wanted_ranks(row, density, epsilon)
        self._end = np.uint16(np.count_nonzero(wanted < 2 * row - 1))
        """Draws from here on are below no threshold."""
        wanted = np.minimum(wanted, 2 * row - 2)
        self._places = ((wanted + 1) // 2 + wanted % 2 * self._step).astype(np.uint32)
        """Where in a row's limits the one for a draw stands."""
        self._begins = np.arange(0, self._step, row)[:, None]

    def __call__(self, draws: Array, bits: Array, coarse: Array, places: Array, out: Array) -> None:
        """Take draws (uint16) and magnitudes (bits of float32), and fill a mask.

        `coarse` (uint32) and `places` (intp) are scratch.
        """
        for piece in row_pieces(len(bits), self._row):
            keys, tickets, kept = bits[piece], draws[piece], out[piece]
            if int(keys.max()) > _LARGEST_KEY:
                keys = np.minimum(keys, np.uint32(_LARGEST_KEY))
            scratch, where = coarse[: len(keys)], places[: len(keys)]
            limits = self._limits(keys, scratch)
            np.copyto(where, tickets)
            np.take(self._places, where, out=scratch, mode="clip")
            rows = len(keys) // self._row
            shape = (rows, self._row)
            np.add(scratch.reshape(shape), self._begins[:rows], out=where.reshape(shape))
            np.take(limits, where, out=scratch, mode="clip")
            np.greater_equal(keys, scratch, out=kept)
            np.logical_and(kept, tickets < self._end, out=kept)

    def _limits(self, keys: Array, ordered: Array) -> Array:
        """Return the smallest keys of which twice the mean rank is at least 2 p, and 2 p − 1.

        For each row in turn p goes from 0 to the last position; the limits for 2 p come first,
        those for 2 p − 1 begin at `_step`. The key at position p of the sorted row is the limit;
        but where p lies above the middle of those that are equal to it, any larger key is.
        """
        np.copyto(ordered, keys)
        ordered.reshape(-1, self._row).sort(axis=1)
        limits = np.empty(self._step + len(keys), np.uint32)
        exact, looser = limits[: len(keys)], limits[self._step :]
        same = np.empty(len(keys) + 1, bool)
        np.equal(ordered[1:], ordered[:-1], out=same[1:-1])
        same[:: self._row] = False  # a row begins, or the last has ended
        turns = np.flatnonzero(same[1:] != same[:-1])
        if len(turns) == 0:
            exact[:], looser[:] = ordered, ordered
            return limits
        starts, ends = turns[::2], turns[1::2] + 1
        upper = ends - (ends - starts) // 2
        steps = np.zeros((len(ends), 2), np.uint32)
        steps[:, 1] = 1
        lengths = np.empty((len(ends), 2), np.intp)
        lengths[0, 0] = upper[0]
        np.subtract(upper[1:], ends[:-1], out=lengths[1:, 0])
        np.subtract(ends, upper, out=lengths[:, 1])
        end = ends[-1]
        np.add(ordered[:end], np.repeat(steps.ravel(), lengths.ravel()), out=exact[:end])
        exact[end:] = ordered[end:]
        looser[:] = exact
        middle = upper[(starts + ends) % 2 == 0]
        looser[middle] = ordered[middle]
        return limits


def _wanted_ranks(row: int, density: float, epsilon: float) -> Array:
    """Return for each draw the smallest `twice` whose `shares.rank_threshold` is above it."""
    last, most = row - 1, 2 * row - 1
    counts = np.zeros(RESOLUTION, np.intp)
    for begin in range(0, most, ROW_PIECE):
        twice = np.arange(begin, min(begin + ROW_PIECE, most))
        offset = (twice - last) / last if last else np.zeros(1)
        shares = np.rint((density + epsilon * offset) * RESOLUTION)
        thresholds = np.clip(shares, 1, RESOLUTION - 1).astype(np.intp)
        counts += np.bincount(thresholds, minlength=RESOLUTION)
    wanted: Array = np.cumsum(counts)
    return wanted


class CombineRows:
    """Σ c_i t_i for each row, with coefficients from the dot products of vectors within the row."""

    def __init__(
        self, row: int, vectors: int, function: Callable[..., tuple[float, ...]],
        options: tuple[float | int | bool | str, ...],
    ) -> None:  # fmt: skip
        self._row, self._vectors = row, vectors
        self._function, self._options = function, options
        self._takes_arrays = getattr(function, "takes_arrays", False)
        self._most = ROW_PIECE if self._takes_arrays else min(ROW_PIECE, _MOST_ROWS * row)

    def __call__(self, *arrays: Array) -> None:
        """Take vectors, terms and the result, all float32; the result may be one of the others."""
        *inputs, out = arrays
        for piece in row_pieces(len(out), self._row, self._most):
            rows = [array[piece].reshape(-1, self._row) for array in inputs]
            vectors, terms = rows[: self._vectors], rows[self._vectors :]
            gram = [sum_rows(x, y) for i, x in enumerate(vectors) for y in vectors[: i + 1]]
            coefficients = self._coefficients(gram).astype(np.float32)
            _add_terms(terms, coefficients, out[piece].reshape(-1, self._row))

    def _coefficients(self, gram: Sequence[Array]) -> Array:
        if self._takes_arrays:
            return np.stack(self._function(*gram, *self._options), axis=1)
        numbers = zip(*(column.tolist() for column in gram), strict=True)
        return np.array([self._function(*row, *self._options) for row in numbers])


def _add_terms(terms: Sequence[Array], coefficients: Array, out: Array) -> None:
    rows, width = out.shape
    if width <= _SHORT:  # numpy is slow where it repeats a number only a few times
        factors = [np.repeat(column, width).reshape(rows, width) for column in coefficients.T]
        out[...] = functools.reduce(np.add, map(np.multiply, terms, factors))
        return
    for begin in range(0, out.shape[1], ROW_PIECE):
        part = slice(begin, begin + ROW_PIECE)
        total = terms[0][:, part] * coefficients[:, :1]
        for index in range(1, len(terms)):
            total += terms[index][:, part] * coefficients[:, index : index + 1]
        out[:, part] = total


def sum_rows(x: Array, y: Array | None = None) -> Array:
    """Return the sum of each row of x, or of x · y, in float64, in the order of `eager`."""
    width = x.shape[1]
    lanes = min(_LANES, 1 << (width - 1).bit_length())
    if width <= _SHORT:
        columns = x.T.astype(np.float64)
        return sum_columns(columns if y is None else columns * y.T)
    sums: Array | None = None
    for begin in range(0, width, ROW_PIECE):
        part = x[:, begin : begin + ROW_PIECE]
        values = part.astype(np.float64)
        if y is not None:
            values *= y[:, begin : begin + ROW_PIECE]
        sums = _add_lines(values, lanes, sums)
    assert sums is not None
    return fold_lanes(sums)


def sum_columns(x: Array) -> Array:
    """Return the sum of each column of float64 values, in the order in which rows are summed."""
    width, count = x.shape
    sums = np.zeros((1 << (width - 1).bit_length(), count))
    sums[:width] = x
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half] + sums[half:]
    total: Array = sums[0] + 0.0  # no sum is -0
    return total


def fold_lanes(sums: Array) -> Array:
    """Add the second half of each row to the first until one number is left."""
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0] + 0.0  # no sum is -0


def _add_lines(values: Array, lanes: int, sums: Array | None) -> Array:
    """Add lines of float64 values to what came before, from the first to the last."""
    rows, width = values.shape
    whole = width // lanes * lanes
    if whole == 0:
        total = np.zeros((rows, lanes)) if sums is None else sums
    else:
        lines = values[:, :whole].reshape(rows, -1, lanes)
        if sums is not None:
            lines[:, 0] += sums
        total = np.add.reduce(lines, axis=1)
    if whole < width:
        total[:, : width - whole] += values[:, whole:]
    return total


class DivergenceOfRows:
    """KL(softmax x ‖ softmax y) of each row, at every element: the definition is in `eager`."""

    def __init__(self, row: int) -> None:
        self._row = row

    def __call__(self, x: Array, y: Array, out: Array) -> None:
        """Take float32; the result may be one of the others."""
        for piece in row_pieces(len(out), self._row, _WIDE_PIECE):
            left, right, rows = (array[piece].reshape(-1, self._row) for array in (x, y, out))
            if self._row > _SHORT:
                rows[...] = self._divergence(left, right)[:, None]
            else:
                out[piece] = np.repeat(self._of_short_rows(left, right), self._row)

    def _of_short_rows(self, x: Array, y: Array) -> Array:
        left, right = (array.T.astype(np.float64, order="C") for array in (x, y))
        for logits in (left, right):
            logits -= logits.max(axis=0)
        difference = left - right
        a, b = exp_of_negative(left), exp_of_negative(right)
        np.multiply(difference, a, out=difference)
        return _from_sums(*map(sum_columns, (difference, a, b)))

    def _divergence(self, x: Array, y: Array) -> Array:
        lanes = min(_LANES, 1 << (self._row - 1).bit_length())
        tops = [array.max(axis=1, keepdims=True).astype(np.float64) for array in (x, y)]
        sums: list[Array | None] = [None] * 3
        for begin in range(0, self._row, _WIDE_PIECE):
            part = slice(begin, begin + _WIDE_PIECE)
            left = np.subtract(x[:, part], tops[0], dtype=np.float64)
            right = np.subtract(y[:, part], tops[1], dtype=np.float64)
            difference = left - right
            a = exp_of_negative(left)
            np.multiply(difference, a, out=difference)
            for index, values in enumerate((difference, a, exp_of_negative(right))):
                sums[index] = _add_lines(values, lanes, sums[index])
        return _from_sums(*(fold_lanes(lane) for lane in sums if lane is not None))


def _from_sums(shift: Array, total: Array, other: Array) -> Array:
    """Return the divergence from Σ a d, Σ a and Σ b; see `eager.divergence_of_rows`."""
    divergence: Array = np.maximum(shift / total + log(other / total), 0.0) + 0.0
    return divergence


_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""ln 2 in two parts; multiples of the first up to 2^20 are exact (the split of fdlibm)."""
_ROUND = 1.5 * 2.0**52
"""Added to a float64 and subtracted again it rounds to a whole number, ties to even."""


def exp_of_negative(x: Array) -> Array:
    """Return e^x of float64 values up to 0, in the memory of x, from IEEE operations alone.

    x = k ln 2 + 8 r with a whole k; e^r, |r| < 0.0434, by its Taylor series up to r^8, and then
    three times squared. The relative error is below 3e-15; below −700 the result is e^−700.
    """
    np.maximum(x, -700.0, out=x)
    k = np.multiply(x, _LOG2_E)
    np.add(k, _ROUND, out=k)
    scale = np.left_shift(k.view(np.int64), 52)
    np.add(scale, 1023 << 52, out=scale)
    np.subtract(k, _ROUND, out=k)
    power = np.multiply(k, _LN2_HIGH / 8)
    np.multiply(x, 0.125, out=x)
    np.subtract(x, power, out=x)
    np.multiply(k, _LN2_LOW / 8, out=k)
    np.subtract(x, k, out=x)
    np.multiply(x, 1 / 40_320, out=power)
    for factorial in (5_040, 720, 120, 24, 6, 2, 1):
        np.add(power, 1 / factorial, out=power)
        np.multiply(power, x, out=power)
    np.add(power, 1.0, out=power)
    for _ in range(3):
        np.multiply(power, power, out=power)
    np.multiply(power, scale.view(np.float64), out=x)
    return x


def log(x: Array) -> Array:
    """Return the logarithm of positive float64 values from IEEE operations alone.

    x = 2^e m with m from √½ to √2; log m = 2 artanh((m − 1) / (m + 1)) by its series. The error is
    below 1e-15 where x is near 1, and relatively below 4e-16 elsewhere.
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, mantissa * 2, mantissa)
    e = (exponent - small).astype(np.float64)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = np.full_like(s, 1 / 23)
    for odd in range(21, 0, -2):
        series = series * square + 1 / odd
    found: Array = e * _LN2_HIGH + (2 * s * series + e * _LN2_LOW)
    return found

"""Reductions over a whole tensor, fed tile by tile, by any thread, in any order.

Sums are taken over blocks that follow from the shape and added in a fixed tree, so they do not
depend on tiles or threads. Order statistics are exact: a sample narrows the range in which the
k-th largest value lies, a sweep over all elements counts what is above it and keeps what is
inside, and where too much is inside a histogram narrows the range again.
"""

from __future__ import annotations

import math
import threading
from typing import Protocol

import numpy as np

from mergeconf.execution.kernels import Array
from mergeconf.graph.geometry import Geometry
from mergeconf.graph.nodes import NonzeroShare

_LANES = 512
SAMPLE_PIECES = 64
SAMPLE_LENGTH = 1024
"""A tensor is sampled in this many pieces of this many elements, spread evenly; larger ones in
more pieces."""
SAMPLED = 64
"""One of this many elements of a large tensor is sampled."""
MOST_SAMPLED = 1 << 19
"""Elements of a sample at most, about."""
MOST_KEPT = 1 << 19
"""Candidates for an order statistic that are kept at a time: 2 MiB."""
_BINS = 1 << 16
_MOST_ATOMS = 4
_END = 1 << 32


class Reducer(Protocol):
    """One number, from all elements of a tensor."""

    def update(self, start: int, values: Array, size: int) -> None:
        """Take the values of elements `start` to `start + size - 1`; thread-safe."""

    def finish(self) -> float | None:
        """Return the number after a sweep over all elements, or None to ask for another."""


class SumReducer:
    """A sum in float64, in the order written in `graph.eager`."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._blocks = np.zeros(geometry.blocks)

    def update(self, start: int, values: Array, size: int) -> None:
        """Sum the blocks of a tile."""
        for index, begin, end in self._geometry.split(start, size):
            whole = (end - begin) // _LANES * _LANES
            lanes = values[begin : begin + whole].reshape(-1, _LANES)
            # Adding along the first axis is element-wise and in order; along the last one numpy
            # would choose an order that depends on the processor.
            sums = np.add.reduce(lanes, axis=0)
            if begin + whole < end:
                sums[: end - begin - whole] += values[begin + whole : end]
            total = 0.0
            for row in np.add.reduce(sums.reshape(16, 32), axis=0).tolist():
                total += row
            self._blocks[index] = total

    def finish(self) -> float:
        """Add the blocks in a binary tree."""
        size = 1 << (len(self._blocks) - 1).bit_length()
        tree = np.zeros(size)
        tree[: len(self._blocks)] = self._blocks
        while len(tree) > 1:
            half = len(tree) // 2
            tree = tree[:half] + tree[half:]
        return float(tree[0])


class CountReducer:
    """How many elements of a mask are true."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def update(self, start: int, values: Array, size: int) -> None:
        """Count a tile."""
        found = int(np.count_nonzero(values[:size]))
        with self._lock:
            self._count += found

    def finish(self) -> float:
        """Return the count."""
        return float(self._count)


class KthLargestReducer:
    """The k-th largest of non-negative float32 values, exactly, by their bits.

    Bits of non-negative floats, taken as integers, are ordered as the floats are.
    """

    def __init__(self, numel: int, k: int | NonzeroShare) -> None:
        self._numel = numel
        self._k = None if isinstance(k, NonzeroShare) else k
        """The rank; None until the values that are not 0 have been counted."""
        self._share = k.share if isinstance(k, NonzeroShare) else 0.0
        self._low, self._high = 0, _END
        self._lock = threading.Lock()
        self._sample: list[Array] = []
        self._atoms: dict[int, int] = {}
        self._reset()

    def _reset(self) -> None:
        self._above = 0
        self._inside = 0
        self._nonzero = 0
        self._kept: list[Array] = []
        self._kept_size = 0
        self._histogram: Array | None = None
        self._shift = max(0, (self._high - self._low - 1).bit_length() - 16)
        self._atoms = {atom: 0 for atom in self._atoms if self._low <= atom < self._high}

    @property
    def wants_sample(self) -> bool:
        """Whether a sample is worth taking before the first sweep."""
        return self._numel > 4 * SAMPLE_LENGTH

    def take_sample(self, values: Array) -> None:
        """Take part of a sample: bits of values from somewhere in the tensor."""
        with self._lock:
            self._sample.append(values.copy())

    def use_sample(self) -> None:
        """Narrow the range to where the sample says that the value lies, with a wide margin.

        Should it lie elsewhere after all, `finish` finds out and asks for another sweep.
        """
        ascending = np.sort(np.concatenate(self._sample))
        sample = ascending[::-1]
        self._sample = []
        if self._k is None:
            share = self._share * int(np.count_nonzero(sample)) / len(sample)
        else:
            share = self._k / self._numel
        rank = share * len(sample)
        # Where the rank itself is an estimate its error is as large again at most.
        margin = (16 if self._k is None else 8) * math.sqrt(len(sample) * share * (1 - share)) + 16
        # Elements that lie together are alike, so that a sample misleads more than its size says:
        # a range is as wide as what it keeps leaves room for.
        much = MOST_KEPT / 8 * len(sample) / self._numel
        margin = max(margin, min(2 * margin, much))
        first, last = int(rank - margin), math.ceil(rank + margin)
        if first >= 0:
            self._high = int(sample[first]) + 1
        if last < len(sample):
            self._low = int(sample[last])
        # Deltas of 16-bit formats repeat: a value that many elements share is counted, not kept.
        begin, end = np.searchsorted(ascending, [self._low, self._high])
        values, counts = np.unique(ascending[begin:end], return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:_MOST_ATOMS]
        self._atoms = {
            int(values[i]): 0 for i in frequent if counts[i] >= min(len(sample) / 256, much)
        }
        self._reset()

    def update(self, start: int, values: Array, size: int) -> None:
        """Count and keep what a tile of bits (uint32) has above and inside the range."""
        bits = values[:size]
        mask = bits >= np.uint32(self._low)
        above = 0
        if self._high < _END:
            beyond = bits >= np.uint32(self._high)
            above = int(np.count_nonzero(beyond))
            np.not_equal(mask, beyond, out=mask)
        found = {}
        for atom in self._atoms:
            equal = bits == np.uint32(atom)
            found[atom] = int(np.count_nonzero(equal))
            np.not_equal(mask, equal, out=mask)
        inside = np.compress(mask, bits)
        nonzero = int(np.count_nonzero(bits)) if self._k is None else 0
        with self._lock:
            self._above += above
            self._nonzero += nonzero
            self._inside += len(inside) + sum(found.values())
            for atom, count in found.items():
                self._atoms[atom] += count
            self._kept.append(inside)
            self._kept_size += len(inside)
            if self._kept_size > MOST_KEPT:
                self._fold()

    def _fold(self) -> None:
        bins = (np.concatenate(self._kept) - np.uint32(self._low)) >> np.uint32(self._shift)
        counts = np.bincount(bins, minlength=_BINS)
        self._histogram = counts if self._histogram is None else self._histogram + counts
        self._kept, self._kept_size = [], 0

    def finish(self) -> float | None:
        """Return the value, or narrow the range and ask for another sweep."""
        if self._k is None:
            self._k = int(self._share * self._nonzero)
        if self._k == 0:
            return math.inf
        if self._numel == 0:
            return 0.0
        rank = self._k - self._above
        if rank < 1 or rank > self._inside:
            # The sample misled: the value lies on the other side of one end of the range.
            self._low, self._high = (self._high, _END) if rank < 1 else (0, self._low)
            self._reset()
            return None
        if self._histogram is None:
            return _float_of(self._search_kept(rank))
        if self._kept:
            self._fold()
        for atom, count in self._atoms.items():
            self._histogram[(atom - self._low) >> self._shift] += count
        from_top = np.cumsum(self._histogram[::-1])
        bin_index = _BINS - 1 - int(np.searchsorted(from_top, rank))
        low = self._low + (bin_index << self._shift)
        if self._shift == 0:
            return _float_of(low)
        self._low, self._high = low, min(self._high, low + (1 << self._shift))
        self._reset()
        return None

    def _search_kept(self, rank: int) -> int:
        """Return the value of a rank, from 1 for the largest, among those kept and the atoms."""
        kept = np.concatenate(self._kept)
        self._kept = []
        for atom in sorted(self._atoms, reverse=True):
            larger = int(np.count_nonzero(kept > np.uint32(atom)))
            if rank <= larger:
                break
            if rank <= larger + self._atoms[atom]:
                return atom
            rank -= self._atoms[atom]
        return int(np.partition(kept, len(kept) - rank)[len(kept) - rank])


def _float_of(bits: int) -> float:
    return float(np.array([bits], dtype="<u4").view("<f4")[0])

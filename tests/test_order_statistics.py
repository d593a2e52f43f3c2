"""The k-th largest value is found exactly, in any order of feeding, within bounded memory.

The oracle is numpy's sort. Samples only guide the search: however they mislead, the value is
right.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.execution import reducers
from mergeconf.execution.reducers import KthLargestReducer
from mergeconf.graph.nodes import NonzeroShare

Bits = npt.NDArray[np.uint32]
MOST_SWEEPS = 6
"""Of all elements: one, one more where the sample misled, and up to two that narrow a range."""


def true_kth(bits: Bits, k: int) -> float:
    return float(np.sort(bits)[::-1][k - 1 : k].view(np.float32)[0])


def honest_sample(bits: Bits) -> list[Bits]:
    pieces = max(1, min(reducers.SAMPLE_PIECES, len(bits) // (4 * reducers.SAMPLE_LENGTH)))
    starts = [piece * len(bits) // pieces for piece in range(pieces)]
    return [bits[start : start + reducers.SAMPLE_LENGTH] for start in starts]


def search(
    bits: Bits,
    k: int | NonzeroShare,
    *,
    sample: list[Bits] | None = None,
    tile: int = 1000,
    seed: int = 0,
    threads: int = 1,
) -> float:
    """Sweep until the value is known, tiles in random order, as the executor does."""
    reducer = KthLargestReducer(len(bits), k)
    if reducer.wants_sample:
        for piece in honest_sample(bits) if sample is None else sample:
            reducer.take_sample(piece)
        reducer.use_sample()
    starts = np.arange(0, len(bits), tile)
    generator = np.random.default_rng(seed)
    for _ in range(MOST_SWEEPS):
        generator.shuffle(starts)

        def feed(some: npt.NDArray[np.int64]) -> None:
            for start in some.tolist():
                part = bits[start : start + tile].copy()
                reducer.update(start, part, len(part))
                part[:] = 0xFFFFFFFF  # a buffer is used again: nothing may hold on to it
                assert reducer._kept_size <= reducers.MOST_KEPT

        if threads == 1:
            feed(starts)
        else:
            workers = [
                threading.Thread(target=feed, args=(starts[index::threads],))
                for index in range(threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        value = reducer.finish()
        if value is not None:
            return value
    raise AssertionError("the search does not end")


def bits_of(values: npt.NDArray[np.floating]) -> Bits:
    return np.abs(values).astype(np.float32).view(np.uint32)


def bfloat16_deltas(generator: np.random.Generator, n: int) -> Bits:
    """Return |a − b| of weights rounded to bfloat16: most are zero, the others repeat."""
    a = generator.normal(0, 0.02, n).astype(np.float32)
    b = a + generator.normal(0, 1e-4, n).astype(np.float32)
    rounded = [(x.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32) for x in (a, b)]
    return bits_of(rounded[0] - rounded[1])


def distributions(n: int) -> Iterator[tuple[str, Bits]]:
    generator = np.random.default_rng(n)
    normal = generator.normal(size=n)
    yield "normal", bits_of(normal)
    yield "all equal", bits_of(np.full(n, 0.125))
    yield "all zero", np.zeros(n, np.uint32)
    yield "two values", bits_of(np.where(generator.random(n) < 0.3, 1.0, 2.0))
    yield "two neighbours", np.uint32(0x3F800000) + generator.integers(0, 2, n, dtype=np.uint32)
    yield "heavy ties", bits_of(np.round(normal * 4))
    yield "bfloat16 deltas", bfloat16_deltas(generator, n)
    yield "ascending", np.sort(bits_of(normal))
    yield "descending", np.sort(bits_of(normal))[::-1].copy()
    yield "huge range", bits_of(10.0 ** generator.uniform(-44, 38, n))
    yield "subnormal", generator.integers(0, 1 << 23, n, dtype=np.uint32)
    yield "any non-negative bits", generator.integers(0, 1 << 31, n, dtype=np.uint32)
    special = np.array([0.0, math.inf, math.nan, 1e-45, 3.4e38, 1.0], np.float32).view(np.uint32)
    yield "special", generator.choice(special, n)
    sparse = np.zeros(n, np.uint32)
    sparse[generator.integers(0, n, max(1, n // 500))] = 0x3F800000
    yield "few are not zero", sparse
    first_large = bits_of(normal)
    first_large[: n // 10] = bits_of(normal[: n // 10] + 100)
    yield "first pieces large", first_large
    period = bits_of(normal)
    period[:: max(1, n // 64)] = bits_of(np.full(1, 1e6))
    yield "outliers at the sampled places", period


def ranks(n: int) -> list[int]:
    wanted = {1, 2, n // 100 + 1, n // 3 + 1, n // 2 + 1, n - 1, n}
    return sorted(k for k in wanted if 1 <= k <= n)


LIMIT = 4 * reducers.SAMPLE_LENGTH
"""Longest tensor that is not sampled."""


@pytest.mark.parametrize("n", [1, 2, 3, 999, LIMIT - 1, LIMIT, LIMIT + 1, 30_011])
def test_every_distribution(n: int) -> None:
    for name, bits in distributions(n):
        for k in ranks(n):
            got, want = search(bits, k), true_kth(bits, k)
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, k)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold and sample at sizes that a test can afford."""
    monkeypatch.setattr(reducers, "MOST_KEPT", 700)
    monkeypatch.setattr(reducers, "SAMPLE_LENGTH", 16)
    monkeypatch.setattr(reducers, "SAMPLE_PIECES", 8)


@pytest.mark.parametrize("n", [63, 65, 701, 20_001])
@pytest.mark.usefixtures("little_memory")
def test_every_distribution_in_little_memory(n: int) -> None:
    for name, bits in distributions(n):
        for k in ranks(n):
            got, want = search(bits, k, tile=300), true_kth(bits, k)
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, k)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("misled", ["smallest", "largest", "zero", "one value", "unrelated"])
def test_misleading_samples(misled: str) -> None:
    n = 20_001
    for name, bits in distributions(n):
        ordered = np.sort(bits)
        middle = ordered[n // 2 : n // 2 + 1]
        sample = {
            "smallest": ordered[:128],
            "largest": ordered[-128:],
            "zero": np.zeros(128, np.uint32),
            "one value": np.repeat(middle, 128),
            "unrelated": np.random.default_rng(1).integers(0, 1 << 31, 128, dtype=np.uint32),
        }[misled]
        for k in ranks(n):
            got, want = search(bits, k, sample=[sample], tile=300), true_kth(bits, k)
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, k)


@given(
    values=st.lists(
        st.floats(0, width=32, allow_infinity=True) | st.sampled_from([0.0, 1.0, 1e-45, math.inf]),
        min_size=1,
        max_size=60,
    ),
    repeat=st.integers(1, 30),
    data=st.data(),
)
def test_any_values(values: list[float], repeat: int, data: st.DataObject) -> None:
    bits = np.random.default_rng(0).permutation(np.tile(bits_of(np.array(values)), repeat))
    k = data.draw(st.integers(1, len(bits)))
    tile = data.draw(st.sampled_from([1, 7, 100, 5000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducers, "MOST_KEPT", data.draw(st.sampled_from([1, 10, 100])))
        patch.setattr(reducers, "SAMPLE_LENGTH", 4)
        patch.setattr(reducers, "SAMPLE_PIECES", 3)
        chosen = data.draw(st.lists(st.sampled_from(bits.tolist()), min_size=1, max_size=12))
        sample = [np.array(chosen, np.uint32)] if data.draw(st.booleans()) else None
        assert search(bits, k, sample=sample, tile=tile) == true_kth(bits, k)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.usefixtures("little_memory")
def test_fed_from_several_threads(threads: int) -> None:
    for name, bits in distributions(20_001):
        for k in (1, 6000, 20_001):
            for seed in range(2):
                got = search(bits, k, tile=250, seed=seed, threads=threads)
                want = true_kth(bits, k)
                assert got == want or (math.isnan(got) and math.isnan(want)), (name, k)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 50, 65, 20_001])
def test_rank_among_those_that_are_not_zero(n: int, share: float) -> None:
    for name, bits in distributions(n):
        k = int(share * np.count_nonzero(bits))
        want = true_kth(bits, k) if k else math.inf
        got = search(bits, NonzeroShare(share), tile=300)
        assert got == want or (math.isnan(got) and math.isnan(want)), name


def test_no_values() -> None:
    nothing = np.empty(0, np.uint32)
    assert search(nothing, 1) == 0
    assert search(nothing, NonzeroShare(0.5)) == math.inf


def test_candidates_are_bounded_with_the_real_limits() -> None:
    """A sample that says nothing: all of a million elements are candidates."""
    n = 1_500_000
    assert n > reducers.MOST_KEPT
    bits = np.random.default_rng(5).integers(0, 1 << 31, n, dtype=np.uint32)
    reducer = KthLargestReducer(n, n // 2)
    most = 0
    for _ in range(MOST_SWEEPS):
        for start in range(0, n, 65_536):
            part = bits[start : start + 65_536]
            reducer.update(start, part, len(part))
            most = max(most, sum(map(len, reducer._kept)))
        value = reducer.finish()
        if value is not None:
            break
    assert value == true_kth(bits, n // 2) or math.isnan(true_kth(bits, n // 2))
    assert most <= reducers.MOST_KEPT + 65_536


def test_a_good_sample_makes_one_sweep_enough() -> None:
    """It is what makes `ties` fast; a sample of 65,536 leaves few candidates."""
    n = 1_000_000
    bits = bits_of(np.random.default_rng(6).normal(size=n))
    reducer = KthLargestReducer(n, n // 5)
    for piece in honest_sample(bits):
        reducer.take_sample(piece)
    reducer.use_sample()
    reducer.update(0, bits, n)
    kept = sum(map(len, reducer._kept))
    assert reducer.finish() == true_kth(bits, n // 5)
    assert kept < n // 12

"""Sums over a whole tensor: near the exact sum, in one order, whoever feeds which part when.

Oracles: `math.fsum` for the value, and the order written in `graph/eager.py` for the bits.
"""

from __future__ import annotations

import math
import struct
import threading

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.execution.reducers import CountReducer, SumReducer
from mergeconf.graph import eager
from mergeconf.graph.geometry import BLOCK, Geometry

SHAPES = [
    (), (0,), (3, 0), (0, 3), (1,), (1, 1), (511,), (512,), (513,), (2, 511), (7, 9, 11),
    (65_535,), (65_536,), (65_537,), (1, 65_537), (3, 65_537), (2, 131_072), (65_537, 1),
    (65_537, 2), (200_003,), (331, 617), (5, 40_000), (2, 3, 33_000), (3, 200_001),
]  # fmt: skip
"""One row or many, shorter and longer than a block; whole and cut blocks."""
Values = npt.NDArray[np.float64]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def values_of(shape: tuple[int, ...], kind: str) -> Values:
    generator = np.random.default_rng(math.prod(shape))
    match kind:
        case "normal":
            values = generator.normal(size=shape)
        case "cancelling":
            values = generator.normal(size=shape) * 10.0 ** generator.integers(-8, 9, shape)
        case "alike":
            values = np.full(shape, 0.1)
        case _:
            values = np.full(shape, -0.0)
    return values.astype(np.float32).astype(np.float64)


def stretches(geometry: Geometry, most: int, seed: int) -> list[tuple[int, int]]:
    cut = list(geometry.stretches(most, whole_rows=False))
    np.random.default_rng(seed).shuffle(cut)
    return cut


def feed(reducer: SumReducer, values: Values, cut: list[tuple[int, int]]) -> None:
    flat = values.reshape(-1)
    for start, count in cut:
        tile = np.full(-(-count // 512) * 512, np.nan)  # what lies behind a tile is anything
        tile[:count] = flat[start : start + count]
        reducer.update(start, tile, count)


def total(values: Values, most: int = BLOCK, seed: int = 0) -> float:
    geometry = Geometry.of(values.shape)
    reducer = SumReducer(geometry)
    with np.errstate(all="ignore"):  # as in a worker thread
        feed(reducer, values, stretches(geometry, most, seed))
        return reducer.finish()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["normal", "cancelling", "alike", "negative zero"])
def test_sum_has_the_written_order(shape: tuple[int, ...], kind: str) -> None:
    values = values_of(shape, kind)
    want = eager.total_of(torch.from_numpy(np.asarray(values)))
    for most, seed in ((1, 0), (BLOCK, 1), (3 * BLOCK, 2), (1 << 40, 3)):
        assert bits(total(values, most, seed)) == bits(want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["normal", "cancelling", "alike"])
def test_sum_is_near_the_exact_one(shape: tuple[int, ...], kind: str) -> None:
    """No element takes part in more than 128 + 16 + 32 + log2(blocks) additions.

    Each loses at most 2^-53 of what it adds up, so the error stays below (depth · 2^-53) Σ|x|.
    """
    values = values_of(shape, kind)
    depth = 128 + 16 + 32 + math.ceil(math.log2(Geometry.of(shape).blocks))
    flat = values.reshape(-1).tolist()
    bound = depth * 2.0**-53 * math.fsum(map(abs, flat)) * 1.01
    assert abs(total(values) - math.fsum(flat)) <= bound


@pytest.mark.parametrize("shape", [(1000,), (3, 65_537), (331, 617)])
def test_dot_product(shape: tuple[int, ...]) -> None:
    """Products of float32 values are exact in float64, so `fsum` of them is the exact dot."""
    x, y = values_of(shape, "normal"), values_of(shape, "cancelling")[::-1].copy()
    want = eager.dot(torch.from_numpy(x), torch.from_numpy(y))
    products = (x * y).reshape(-1)
    assert bits(total(x * y)) == bits(want)
    bound = 180 * 2.0**-53 * math.fsum(np.abs(products).tolist())
    assert abs(want - math.fsum(products.tolist())) <= bound
    as_float32 = [torch.from_numpy(tensor).to(torch.float32) for tensor in (x, y)]
    assert bits(eager.dot(*as_float32)) == bits(want)


@pytest.mark.parametrize("threads", [2, 4])
def test_sum_fed_from_several_threads(threads: int) -> None:
    values = values_of((331, 617), "cancelling")
    geometry = Geometry.of(values.shape)
    want = total(values)
    for seed in range(5):
        reducer, cut = SumReducer(geometry), stretches(geometry, 1, seed)
        workers = [
            threading.Thread(target=feed, args=(reducer, values, cut[index::threads]))
            for index in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert bits(reducer.finish()) == bits(want)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays(bad: float) -> None:
    values = values_of((3, 65_537), "normal")
    values[1, 65_536] = bad
    assert total(values) == bad or (math.isnan(total(values)) and math.isnan(bad))
    values[2, 0] = -bad
    assert math.isnan(total(values))


def test_count() -> None:
    reducer = CountReducer()
    mask = np.random.default_rng(0).random(100_000) < 0.3
    for start in range(0, len(mask), 1000):
        reducer.update(start, mask[start : start + 1024], 1000)
    assert reducer.finish() == int(mask.sum())


shapes = st.lists(st.integers(0, 300), max_size=3).map(tuple) | st.sampled_from(SHAPES)


@given(shapes, st.integers(1, 1 << 20), st.booleans())
def test_blocks_and_stretches_cover_every_element_once(
    shape: tuple[int, ...], most: int, whole_rows: bool
) -> None:
    geometry = Geometry.of(shape)
    covered, blocks = 0, []
    for start, count in geometry.stretches(most, whole_rows=whole_rows):
        assert start == covered
        assert count > 0
        assert count <= max(most, geometry.unit, geometry.row if whole_rows else 0)
        if whole_rows:
            assert start % geometry.row == count % geometry.row == 0
        end = 0
        for index, begin, end_of_block in geometry.split(start, count):
            assert begin == end
            assert 0 < end_of_block - begin <= BLOCK
            blocks.append(index)
            end = end_of_block
        assert end == count
        covered += count
    assert covered == geometry.numel == math.prod(shape)
    assert blocks == list(range(geometry.blocks if covered else 0))

"""Rows taken from other tensors: the same bits however they are cut into tiles.

The oracle indexes whole torch tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from mergeconf.checkpoint import ReadFiles
from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError
from mergeconf.execution.local import Settings
from mergeconf.graph.gather import CannotGather, gathered, zeros
from mergeconf.graph.geometry import BLOCK
from mergeconf.graph.nodes import (
    Cast,
    Choose,
    ColumnMean,
    Elementwise,
    Gather,
    Input,
    Node,
    Random,
    Reduce,
    RowMask,
)
from mergeconf.graph.rewrite import interned, substitute
from mergeconf.graph.rows import ABSENT, Rows
from mergeconf.methods import all_methods
from mergeconf.methods.apply import trace
from support.harness import FLOATS, TORCH, assert_same_bits, eager_method, stream

SETTINGS = [
    Settings(threads=1, tile=7, chunk=BLOCK),
    Settings(threads=3, tile=1001, chunk=BLOCK),
    Settings(threads=1, tile=1 << 20, chunk=1 << 20),
]


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def taken(x: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """Index whole rows; absent ones are zero."""
    index = torch.tensor(numbers, dtype=torch.int64)
    found = x[index.clamp(min=0)]
    found[index < 0] = 0
    return found


NUMBERS = st.lists(st.integers(-1, 19), min_size=1, max_size=40)


@pytest.mark.parametrize("dtype", FLOATS)
@profile(max_examples=10)
@given(numbers=NUMBERS, width=st.integers(1, 9), settings=st.sampled_from(SETTINGS))
def test_rows_in_any_order(dtype, numbers, width, settings):
    x = some(20, width, dtype=TORCH[dtype])
    node = Gather(Input(0, dtype), Rows(np.array(numbers)), width)
    want = taken(x, numbers)
    got = stream(node, [x], dtype, settings=settings, shape=tuple(want.shape)).tensor
    assert_same_bits(got, want)


@given(numbers=NUMBERS)
def test_runs_are_the_rows_that_follow_each_other(numbers):
    rows = Rows(np.array(numbers))
    starts, sources = rows.runs
    found = []
    for start, end, source in zip(starts, [*starts[1:], len(rows)], sources, strict=True):
        found.extend(
            [ABSENT] * (end - start) if source < 0 else range(source, source + end - start)
        )
    assert found == numbers
    breaks = sum(
        b != a + 1 if a >= 0 and b >= 0 else (a < 0) != (b < 0) for a, b in pairwise(numbers)
    )
    assert len(starts) == breaks + 1


class CountingReads(ReadFiles):
    """Counts reads."""

    calls = 0

    def read_into(self, *arguments: Any) -> None:
        type(self).calls += 1
        super().read_into(*arguments)


def test_an_order_that_is_mostly_the_inputs_own_is_read_in_long_runs(monkeypatch):
    monkeypatch.setattr("support.harness.ReadFiles", CountingReads)
    x = some(10_000, 8)
    numbers = np.arange(10_000)
    numbers[[5, 7_000]] = [9, 2]
    node = Gather(Input(0, DType.float32), Rows(numbers), 8)
    settings = Settings(threads=1, tile=1 << 20, chunk=1 << 20)
    got = stream(node, [x], DType.float32, settings=settings)
    assert_same_bits(got.tensor, taken(x, numbers.tolist()))
    assert CountingReads.calls == 5


def test_equal_rows_are_one_node():
    a, b, c = (Rows(np.array(numbers)) for numbers in ([3, 1, -1], [3, 1, -1], [3, 1, 0]))
    assert a == b
    assert hash(a) == hash(b)
    assert a != c
    first, second = (
        Cast(Gather(Input(0, DType.bfloat16), r, 4), DType.float32, "f32") for r in (a, b)
    )
    whole = interned(Elementwise("add", (first, second), "f32"))
    assert isinstance(whole, Elementwise)
    assert whole.args[0] is whole.args[1]


def test_rows_cannot_be_changed():
    numbers = np.arange(4)
    rows = Rows(numbers)
    numbers[0] = 3
    assert rows.is_identity(4)
    with pytest.raises(ValueError, match="read-only"):
        rows.numbers[0] = 3


def test_gathers_move_with_their_inputs():
    node = Gather(Input(0, DType.float32), Rows(np.array([1, 0])), 3)
    moved = substitute(node, {0: Input(5, DType.float32)})
    assert moved == Gather(Input(5, DType.float32), node.rows, 3)


@profile(max_examples=15)
@given(numbers=NUMBERS, width=st.integers(1, 5), settings=st.sampled_from(SETTINGS))
def test_masks_of_rows(numbers, width, settings):
    mask = RowMask(Rows(np.array(numbers)), width)
    node = Elementwise("to_float", (mask,), "f32")
    want = torch.tensor(numbers).ge(0).float()[:, None].expand(-1, width).contiguous()
    root = Cast(node, DType.float32, "stored")
    shape = tuple(want.shape)
    got = stream(root, [want], DType.float32, settings=settings, shape=shape).tensor
    assert_same_bits(got, want)


# --- means of columns -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (300, 7), (5, 70_000), (90_000, 3)])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_means_of_columns(shape, share):
    x = some(*shape, seed=3) * 100
    count = max(1, int(shape[0] * share))
    mean = ColumnMean(Cast(Input(0, DType.float32), DType.float32, "f32"), count, shape[1])
    root = Cast(mean, DType.float32, "stored")
    want = x[:count].double().mean(dim=0).float().expand(shape)
    results = [stream(root, [x], DType.float32, settings=each).tensor for each in SETTINGS[1:]]
    assert_same_bits(results[0], results[1])
    assert torch.allclose(results[0], want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**20])
def test_a_mean_beyond_what_is_held_fails(value):
    x = some(5, 3)
    x[1, 2] = value
    mean = ColumnMean(Cast(Input(0, DType.float32), DType.float32, "f32"), 5, 3)
    with pytest.raises(ExecutionError, match="not a finite number"):
        stream(Cast(mean, DType.float32, "stored"), [x], DType.float32)


# --- rows of expressions ----------------------------------------------------------------------


def chosen(slots: Sequence[Node]) -> Node:
    """An expression with masks, arithmetic and stored bits."""
    x, y = (Cast(slot, DType.float32, "f32") for slot in slots)
    larger = Elementwise("gt", (x, y), "mask")
    total = Cast(Elementwise("add", (x, y), "f32"), DType.bfloat16, "stored")
    return Choose(larger, slots[0], total, DType.bfloat16)


@profile(max_examples=15)
@given(numbers=st.lists(st.integers(-1, 19), min_size=20, max_size=20), width=st.integers(1, 6))
def test_rows_of_an_expression(numbers, width):
    inputs = [some(20, width, seed=seed, dtype=torch.bfloat16) for seed in (1, 2)]
    whole = chosen([Input(slot, DType.bfloat16) for slot in range(2)])
    want = taken(stream(whole, inputs, DType.bfloat16).tensor, numbers)
    node = gathered(whole, Rows(np.array(numbers)), width)
    assert_same_bits(stream(node, inputs, DType.bfloat16).tensor, want)


@profile(max_examples=15)
@given(first=NUMBERS, data=st.data())
def test_rows_of_rows(first, data):
    second = data.draw(st.lists(st.integers(-1, len(first) - 1), min_size=1, max_size=9))
    x = some(20, 3)
    inner = Gather(Input(0, DType.float32), Rows(np.array(first)), 3)
    outer = gathered(inner, Rows(np.array(second)), 3)
    want = taken(taken(x, first), second)
    shape = tuple(want.shape)
    assert_same_bits(stream(outer, [x], DType.float32, shape=shape).tensor, want)


@pytest.mark.parametrize("name", ["della_linear", "model_stock", "nuslerp"])
def test_what_is_computed_row_by_row_can_be_taken_by_row(name):
    method = all_methods()[name]
    base, *models = (some(12, 5, seed=seed) for seed in range(3))
    given_to = {
        "della_linear": {"weight": (1.0, 1.0), "density": (1.0, 1.0), "epsilon": (0.1, 0.1)},
        "model_stock": {"filter_wise": True},
        "nuslerp": {"weight": (0.4, 0.6), "nuslerp_flatten": False},
    }[name]
    slots = [Input(slot, DType.float32) for slot in range(3)]
    whole = trace(method, slots[0], slots[1:], (12, 5), given_to, DType.float32)
    rows = Rows(np.array([11, 3, -1, 4]))
    try:
        node = gathered(whole, rows, 5)
    except CannotGather as reason:
        assert name == "della_linear", reason  # its draws depend on the element
        return
    want = taken(eager_method(method, base, models, given_to), [11, 3, -1, 4])
    got = stream(node, [base, *models], DType.float32, shape=(4, 5)).tensor
    assert_same_bits(got, want)


def test_what_is_of_the_whole_tensor_or_drawn_cannot_be_taken_by_row():
    x = Cast(Input(0, DType.float32), DType.float32, "f32")
    rows = Rows(np.array([1, 0]))
    total = Elementwise("mul", (x, Reduce("sum", (x,))), "f32")
    with pytest.raises(CannotGather, match="whole tensor"):
        gathered(Cast(total, DType.float32, "stored"), rows, 3)
    drawn = Elementwise("draw_below", (Random("x", 0, 0), 9.0), "mask")
    with pytest.raises(CannotGather, match="drawn at random"):
        gathered(Cast(Elementwise("only", (drawn, x), "f32"), DType.float32, "stored"), rows, 3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_whatever_the_input_holds(dtype):
    x = some(3, 4, dtype=TORCH[dtype])
    x[0, 0], x[1, 1] = float("nan"), float("-inf")
    got = stream(zeros(Input(0, dtype), 3, 4), [x], dtype).tensor
    assert_same_bits(got, torch.zeros_like(x))


def test_gathered_infinity_is_the_inputs_own():
    x = some(3, 4)
    x[0, 0] = float("inf")
    node = Gather(Input(0, DType.float32), Rows(np.array([2, 0, 1])), 4)
    wide = Elementwise("mul", (Cast(node, DType.float32, "f32"), 2.0), "f32")
    got = stream(Cast(wide, DType.float32, "stored"), [x], DType.float32)
    assert_same_bits(got.tensor, x[[2, 0, 1]] * 2)
    assert got.counts == Counter()

"""NuSLERP of columns: bits over shapes, tiles and formats, what its sums are, how it is swept."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError
from mergeconf.execution.local import Settings
from mergeconf.execution.program import compile_expression
from mergeconf.graph.gather import CannotGather, gathered
from mergeconf.graph.nodes import Cast, ColumnCompute, ColumnDot, ColumnItem, Input
from mergeconf.graph.rows import Rows
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from support.harness import (
    TORCH,
    assert_same_bits,
    eager_method,
    expression_of,
    stream,
    stream_method,
)

F32 = DType.float32
NUSLERP = all_methods()["nuslerp"]
BY_COLUMNS: dict[str, Any] = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
BY_ROWS: dict[str, Any] = {"nuslerp_flatten": False}
SHAPES = (
    (), (0,), (7,), (3, 0), (0, 5), (1, 1), (40, 1), (1, 40), (5, 6, 7), (64, 32, 3, 3),
    (300, 701), (30, 4097), (3, 9_001), (70_001, 2), (150_001, 1),
)  # fmt: skip
"""Widths around the pieces in which columns are summed, and shapes of several blocks."""
FORMATS = ((DType.bfloat16,) * 3, (F32,) * 3, (DType.float16, F32, DType.bfloat16))
RUNS = (
    Settings(threads=2),
    Settings(threads=1, tile=1000, chunk=65_536),
    Settings(threads=4, tile=4096, chunk=131_072),
)


def fine_tunes(*shape: int) -> list[torch.Tensor]:
    """Return a base and two models."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    return [base, *(base + 0.01 * torch.randn(shape, generator=generator) for _ in range(2))]


@pytest.mark.parametrize("shape", SHAPES)
def test_streaming_gives_the_bits_of_eager(shape: tuple[int, ...]) -> None:
    models = fine_tunes(*shape)
    whole = [(tensor * 2).round() for tensor in models]  # many columns are equal, or 0
    for number, settings in enumerate(RUNS):
        for base, one, two in (models, whole):
            dtypes = FORMATS[number]
            inputs = [t.to(TORCH[dtype]) for t, dtype in zip((base, one, two), dtypes, strict=True)]
            for first, others in ((inputs[0], inputs[1:]), (None, inputs[:2])):
                call = (NUSLERP, first, others, BY_COLUMNS | {"weight": (0.7, 0.4)})
                got = stream_method(*call, settings=settings).tensor
                assert_same_bits(got, eager_method(*call))


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (300, 7), (6, 5, 3), (9, 4, 3, 2)])
@pytest.mark.parametrize("with_base", [True, False])
def test_a_column_by_itself_gives_the_same(shape: tuple[int, ...], with_base: bool) -> None:
    weight = {"weight": (0.7, 0.4)}
    base, *models = fine_tunes(*shape)
    found = evaluate(NUSLERP, base if with_base else None, models, BY_COLUMNS | weight)
    columns = [tensor.reshape(shape[0], -1).T for tensor in (base, *models, found)]
    for first, *others, result in zip(*columns, strict=True):
        alone = evaluate(NUSLERP, first if with_base else None, others, weight)
        torch.testing.assert_close(result, alone, rtol=1e-6, atol=1e-7)


def test_columns_are_the_rows_of_the_transpose() -> None:
    base, one, two = fine_tunes(123, 45)
    found = evaluate(NUSLERP, base, [one, two], BY_COLUMNS)
    turned = evaluate(NUSLERP, base.T, [one.T, two.T], BY_ROWS).T
    torch.testing.assert_close(found, turned, rtol=1e-6, atol=1e-7)
    by_rows = evaluate(NUSLERP, base, [one, two], BY_ROWS)
    assert not torch.allclose(found, by_rows, rtol=1e-5, atol=1e-6)


def test_a_vector_is_one_column() -> None:
    base, *models = fine_tunes(45)
    flat = evaluate(NUSLERP, base, models, {})
    assert torch.equal(evaluate(NUSLERP, base, models, BY_COLUMNS), flat)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2.0**30])
def test_only_the_column_of_a_number_without_place_has_no_result(bad: float) -> None:
    """The square of 2^30 is beyond what sums of columns hold; that of 2^29.9 is not."""
    _, one, two = fine_tunes(50, 6)
    clean = evaluate(NUSLERP, None, [one, two], BY_COLUMNS)
    one[17, 4] = bad
    found = evaluate(NUSLERP, None, [one, two], BY_COLUMNS)
    assert found[:, 4].isnan().all()
    others = [0, 1, 2, 3, 5]
    assert torch.equal(found[:, others], clean[:, others])
    with pytest.raises(ExecutionError, match="not a finite number"):
        stream_method(NUSLERP, None, [one, two], BY_COLUMNS)
    one[17, 4] = 2.0**29.9
    assert stream_method(NUSLERP, None, [one, two], BY_COLUMNS).tensor.isfinite().all()


# --- sums -------------------------------------------------------------------------------------


def itself(number: float) -> tuple[float]:
    """Stand for a method's function, to show a dot product."""
    return (number,)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors, whose magnitudes lie up to 2^58 from each other, or products around 2^-84."""
    shapes = [(1, 1), (1, 9), (31, 1), (400, 17), (70_000, 1), (5, 9_001), (3, 5, 7)]
    shape = draw(st.sampled_from(shapes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    low, high = draw(st.sampled_from([(0, 0), (-20, 20), (-29, 29), (-43, -39)]))

    def one() -> torch.Tensor:
        powers = torch.randint(low, high + 1, shape, generator=generator)
        return torch.ldexp(torch.rand(shape, generator=generator) - 0.5, powers)

    return one(), one()


@profile(max_examples=20)
@given(pair=pairs(), settings=st.sampled_from(RUNS))
def test_dot_products_of_columns_are_exact(
    pair: tuple[torch.Tensor, torch.Tensor], settings: Settings
) -> None:
    """Up to the rounding of each product to 2^-84, and of the sum."""
    width = math.prod(pair[0].shape[1:])
    x, y = (Cast(Input(slot, F32), F32, "f32") for slot in range(2))
    node = ColumnItem(ColumnCompute(itself, (ColumnDot(x, y, width),), (), 1, width), 0)
    got = stream(Cast(node, F32, "stored"), pair, F32, settings=settings).tensor
    columns = [tensor.reshape(-1, width).T.tolist() for tensor in pair]
    sums = [
        sum(round(Fraction(a) * Fraction(b) * 2**84) for a, b in zip(left, right, strict=True))
        for left, right in zip(*columns, strict=True)
    ]
    want = torch.tensor([float(Fraction(total, 2**84)) for total in sums], dtype=torch.float64)
    assert_same_bits(got, want.float().expand(len(got), -1).reshape(got.shape))


@profile(max_examples=20)
@given(pair=pairs(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_plays_no_part(
    pair: tuple[torch.Tensor, torch.Tensor], seed: int
) -> None:
    order = torch.randperm(len(pair[0]), generator=torch.Generator().manual_seed(seed))
    first = stream_method(NUSLERP, None, pair, BY_COLUMNS).tensor
    moved = stream_method(NUSLERP, None, [tensor[order] for tensor in pair], BY_COLUMNS).tensor
    assert_same_bits(moved, first[order])


# --- sweeps and memory ------------------------------------------------------------------------


def test_columns_take_one_sweep_and_no_whole_rows() -> None:
    base, *models = fine_tunes(7, 3)
    expression, _ = expression_of(NUSLERP, base, models, BY_COLUMNS, F32)
    program = compile_expression(expression)
    assert not program.whole_rows
    assert program.passes == 2
    with pytest.raises(CannotGather, match="whole tensor"):
        gathered(expression, Rows(np.array([1, 0])), 3)


def test_columns_of_what_was_made_from_columns() -> None:
    """A second level of sums, for which the first one's columns are needed."""
    base, *models = fine_tunes(7, 3)
    expression, _ = expression_of(NUSLERP, base, models, BY_COLUMNS, F32)
    x = Cast(expression, F32, "f32")
    node = ColumnItem(ColumnCompute(itself, (ColumnDot(x, x, 3),), (), 1, 3), 0)
    got = stream(Cast(node, F32, "stored"), [base, *models], F32).tensor
    found = evaluate(NUSLERP, base, models, BY_COLUMNS).double()
    torch.testing.assert_close(got, (found * found).sum(dim=0).float().expand(7, 3))

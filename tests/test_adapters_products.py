"""Products of small matrices and values by row: the same bits however they are cut into tiles.

The oracle adds whole rank-1 matrices in torch, one after the other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mergeconf.checkpoint import StoredTensor
from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError
from mergeconf.execution import products
from mergeconf.execution.local import Settings
from mergeconf.graph.gather import gathered
from mergeconf.graph.geometry import BLOCK
from mergeconf.graph.nodes import Cast, Elementwise, Input, LowRank, Node, PerRow
from mergeconf.graph.rewrite import substitute
from mergeconf.graph.rows import Rows
from support.command import environment
from support.harness import TORCH, assert_same_bits, dtype_of, stream
from test_bits import FEATURES, dispatched

SETTINGS = [
    Settings(threads=1, tile=1 << 21, chunk=1 << 21),
    Settings(threads=1, tile=7, chunk=BLOCK),
    Settings(threads=3, tile=1001, chunk=BLOCK),
    Settings(threads=2, tile=4096, chunk=3 * BLOCK),
]


def rank_one_sums(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = left[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total = total + left[:, index : index + 1] * right[index : index + 1]
    return total


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    rows=st.integers(1, 40),
    width=st.one_of(st.integers(1, 70), st.just(products.PIECE + 5)),
    rank=st.integers(1, 5),
    data=st.data(),
)
@example(rows=3, width=products.PIECE, rank=2, data=None)
def test_any_stretch_of_a_product(rows, width, rank, data):
    left, right = some(rows, rank, seed=1), some(rank, width, seed=2)
    want = rank_one_sums(left, right).flatten()
    start = 0 if data is None else data.draw(st.integers(0, len(want)))
    end = len(want) if data is None else data.draw(st.integers(start, len(want)))
    out = np.full(end - start, np.nan, np.float32)
    products.fill_product(left.numpy(), right.numpy(), start, out)
    assert_same_bits(torch.from_numpy(out), want[start:end])
    values = some(rows, seed=3)
    products.fill_rows(values.numpy(), width, start, out)
    assert_same_bits(torch.from_numpy(out), values.repeat_interleave(width)[start:end])


def plus_product(base: torch.Tensor, node: LowRank, scale: float) -> Node:
    wide = Cast(Input(0, dtype_of(base)), DType.float32, "f32")
    scaled = Elementwise("mul", (node, scale), "f32")
    return Cast(Elementwise("add", (wide, scaled), "f32"), dtype_of(base), "stored")


@pytest.mark.parametrize("dtype", [DType.bfloat16, DType.float16, DType.float32, DType.float64])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape", [(300, 500), (3, 5), (40, 8, 3, 3), (3, 70_000), (1, 9), (0, 4)])
def test_a_product_added_to_a_tensor(shape, swapped, dtype):
    rows, width, rank = shape[0], int(np.prod(shape[1:])), 4
    base = some(*shape, dtype=torch.bfloat16)
    left, right = some(rows, rank, seed=1, dtype=TORCH[dtype]), some(rank, width, seed=2)
    slots = Input(1, dtype), Input(2, DType.float32)
    node = LowRank(*slots, rank, width, swapped, swapped)
    stored = [x.T.contiguous() if swapped else x for x in (left, right)]
    product = rank_one_sums(left.float(), right).reshape(shape)
    want = (base.float() + product * 0.3).to(torch.bfloat16)
    for settings in SETTINGS[:2] if base.numel() < 100 else SETTINGS[2:]:
        got = stream(
            plus_product(base, node, 0.3), [base, *stored], DType.bfloat16, settings=settings
        )
        assert_same_bits(got.tensor, want)


def test_values_by_row():
    base, values = some(50, 70), some(50, seed=1, dtype=torch.bfloat16)
    wide = Cast(Input(0, DType.float32), DType.float32, "f32")
    node = Elementwise("mul", (wide, PerRow(Input(1, DType.bfloat16), 70)), "f32")
    root = Cast(node, DType.float32, "stored")
    for settings in SETTINGS:
        got = stream(root, [base, values], DType.float32, settings=settings).tensor
        assert_same_bits(got, base * values.float()[:, None])


def test_inputs_that_are_kept_whole_move_with_the_others():
    node = LowRank(Input(0, DType.float32), Input(1, DType.float32), 2, 3)
    moved = substitute(node, {slot: Input(slot + 5, DType.float32) for slot in range(2)})
    assert moved == LowRank(Input(5, DType.float32), Input(6, DType.float32), 2, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_factor_is_an_error_that_names_it(value):
    base, left, right = some(4, 6), some(4, 2), some(2, 6)
    right[1, 3] = value
    node = LowRank(Input(1, DType.float32), Input(2, DType.float32), 2, 6)
    with pytest.raises(ExecutionError, match="input 2: holds NaN or infinity"):
        stream(plus_product(base, node, 1.0), [base, left, right], DType.float32)


def test_what_is_kept_is_counted():
    left, right = Input(1, DType.bfloat16), Input(2, DType.float32)
    node = LowRank(left, right, 2, 6)
    stored = [
        StoredTensor("x", DType.float32, shape, Path("x"), 0, 4 * shape[0] * shape[1])
        for shape in ((4, 6), (4, 2), (2, 6))
    ]
    assert products.whole_bytes([node], stored) >= 4 * (8 + 12) + 4 * 12


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_of_a_product(settings):
    base, left, right, lengths = some(30, 12), some(30, 3, seed=1), some(3, 12, seed=2), some(30)
    node = LowRank(Input(1, DType.float32), Input(2, DType.float32), 3, 12)
    wide = Cast(Input(0, DType.float32), DType.float32, "f32")
    spread = Elementwise("mul", (node, PerRow(Input(3, DType.float32), 12)), "f32")
    root = Cast(Elementwise("add", (wide, spread), "f32"), DType.float32, "stored")
    numbers = [29, 0, 1, 2, -1, 2, 17]
    taken = gathered(gathered(root, Rows(np.arange(30)[::-1]), 12), Rows(np.array(numbers)), 12)
    whole = base + rank_one_sums(left, right) * lengths[:, None]
    want = torch.stack([torch.zeros(12) if n < 0 else whole[29 - n] for n in numbers])
    inputs = [base, left, right, lengths]
    got = stream(taken, inputs, DType.float32, settings=settings, shape=tuple(want.shape))
    assert_same_bits(got.tensor, want)


PRODUCTS = """
import hashlib, numpy as np
from mergeconf.execution.products import fill_product
rng, digest = np.random.default_rng(0), hashlib.sha256()
for width in (1, 3, 17, 130, 1001, 4096):
    left, right = (rng.standard_normal(shape, np.float32) for shape in ((70, 9), (9, width)))
    out = np.empty(60 * width + 1, np.float32)
    fill_product(left, right, 5 * width, out)
    digest.update(out.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("features", FEATURES)
def test_products_without_vector_extensions(features):
    disabled = [name for name in features.split() if name in dispatched()]
    if not disabled:
        pytest.skip("this processor or numpy has none of them")
    found = {
        subprocess.run(
            [sys.executable, "-c", PRODUCTS], env={**environment(), **more}, capture_output=True,
            text=True, check=True,
        ).stdout
        for more in ({}, {"NPY_DISABLE_CPU_FEATURES": " ".join(disabled)})
    }  # fmt: skip
    assert len(found) == 1

"""Methods that look at rows: bits over shapes, tiles and formats, and what each node promises."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.execution import kernels
from mergeconf.execution.local import Settings
from mergeconf.execution.program import compile_expression
from mergeconf.graph import eager, ops
from mergeconf.graph.shares import RESOLUTION, rank_threshold
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from mergeconf.methods.model_stock import stock_shares
from support.harness import TORCH, assert_same_bits, eager_method, expression_of, stream_method
from support.philox import draw_at

BF16, F16, F32 = DType.bfloat16, DType.float16, DType.float32
FORMATS = ((BF16,) * 4, (F32,) * 4, (F16,) * 4, (F32, BF16, F16, BF16))
SHAPES = (
    (), (0,), (1,), (7,), (5000,), (3, 0), (40, 1), (1, 40), (5, 6, 7), (64, 32, 3, 3),
    (300, 700), (600, 1025), (30, 4096), (150_001,), (3, 65_537), (70_001, 2), (2, 200_000),
)  # fmt: skip
RUNS = (
    Settings(threads=2), Settings(threads=1, tile=1000, chunk=65_536),
    Settings(threads=3, tile=65_536 * 4, chunk=65_536 * 8),
)  # fmt: skip
DENSITY, SPREAD = (0.4, 0.7, 0.25), (0.15, 0.29, 0.0)
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "della": [{"density": DENSITY, "epsilon": SPREAD, "weight": (0.7, -0.3, 1.5)}],
    "della_linear": [{"density": (0.4, 1.0, 0.0)}, {"density": DENSITY, "rescale": False}],
    "model_stock": [{"filter_wise": True}, {"filter_wise": True, "mean_angle": True}],
    "nuslerp": [{"nuslerp_flatten": False, "weight": (0.7, 0.4)}],
    "arcee_fusion": [{}],
}
FILLS = ("fine-tuned", "whole numbers", "as the base", "zero")


def inputs(
    shape: tuple[int, ...], formats: tuple[DType, ...], fill: str, seed: int = 0
) -> list[torch.Tensor]:
    """Return a base and three models; `whole numbers` have many equal magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * (fill != "zero")
    tensors = []
    for index, dtype in enumerate(formats):
        delta = 0.01 * torch.randn(shape, generator=generator)
        if fill == "whole numbers":
            value = torch.randint(-3, 4, shape, generator=generator).to(torch.float32)
        else:
            value = base + delta if index and fill == "fine-tuned" else base
        tensors.append(value.to(TORCH[dtype]))
    return tensors


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_streaming_gives_the_bits_of_eager(name: str, fill: str) -> None:
    method = all_methods()[name]
    for turn, shape in enumerate(SHAPES):
        is_large = math.prod(shape) > 100_000
        if is_large and fill in FILLS[2:]:
            continue
        for number in (turn % 4,) if is_large else range(4):
            formats = FORMATS[number]
            base, *models = inputs(shape, formats, fill, seed=number)
            models = models[: method.max_models]
            for parameters in PARAMETERS[name]:
                call = (method, base, models, parameters)
                want = eager_method(*call, out_dtype=formats[0], seed=3, name="x")
                for settings in RUNS if is_large else RUNS[:1]:
                    got = stream_method(
                        *call, out_dtype=formats[0], seed=3, name="x", settings=settings
                    )
                    assert_same_bits(got.tensor, want)


# --- ranks ------------------------------------------------------------------------------------


def slow_thresholds(values: list[float], density: float, epsilon: float) -> list[int]:
    """Return the thresholds of one row by counting."""
    return [
        rank_threshold(
            density, epsilon,
            2 * sum(other < value for other in values) + values.count(value) - 1, len(values),
        )
        for value in values
    ]  # fmt: skip


def kept_by_rank(
    rows: torch.Tensor, draws: torch.Tensor, density: float, epsilon: float
) -> torch.Tensor:
    """Return the mask that the kernel gives."""
    size, row = rows.numel(), rows.shape[1]
    out = np.empty(size, bool)
    kernel = kernels.KeepByRank(row, density, epsilon)
    bits = rows.contiguous().view(-1).numpy().view(np.uint32)
    tickets = draws.reshape(-1).numpy().astype(np.uint16)
    kernel(tickets, bits, np.empty(size, np.uint32), np.empty(size, np.intp), out)
    return torch.from_numpy(out).reshape(rows.shape)


def assert_thresholds(
    rows: torch.Tensor, thresholds: torch.Tensor, density: float, epsilon: float
) -> None:
    """Check on both sides of each threshold, and elsewhere."""
    assert kept_by_rank(rows, thresholds - 1, density, epsilon).all()
    assert not kept_by_rank(rows, thresholds, density, epsilon).any()
    draws = torch.randint(0, RESOLUTION, rows.shape, generator=torch.Generator().manual_seed(0))
    got = kept_by_rank(rows, draws, density, epsilon)
    assert torch.equal(got, draws < thresholds)


@given(
    rows=st.integers(1, 4), row=st.integers(1, 60), seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 3, 40, 2**20]),
    shares=st.sampled_from([(0.5, 0.3), (0.5, 0.0), (0.001, 0.0009999), (0.6, 0.3999999)]),
)  # fmt: skip
def test_thresholds_by_counting(
    rows: int, row: int, seed: int, levels: int, shares: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randint(0, levels, (rows, row), generator=generator) * 0.37).float()
    want = torch.tensor([slow_thresholds(line, *shares) for line in values.tolist()])
    assert_thresholds(values, want, *shares)


@pytest.mark.parametrize("row", [4096, 32_769, 99_991])
def test_thresholds_of_long_rows(row: int) -> None:
    generator = torch.Generator().manual_seed(1)
    base = (torch.randn(11, row, generator=generator) * 0.02).to(torch.bfloat16)
    for scale in (1e-4, 1e-2):
        noise = torch.randn(base.shape, generator=generator) * scale
        tuned = (base.to(torch.float32) + noise).to(torch.bfloat16)
        magnitude = (tuned.to(torch.float32) - base.to(torch.float32)).abs()
        want = torch.empty(magnitude.shape, dtype=torch.int64)
        for line, thresholds in zip(magnitude, want, strict=True):
            _, groups, counts = line.unique(return_inverse=True, return_counts=True)
            twice = (2 * counts.cumsum(0) - counts - 1)[groups]
            share = (twice.double() - (row - 1)) / (row - 1)
            thresholds.copy_(torch.round((0.5 + 0.15 * share) * RESOLUTION))
        assert_thresholds(magnitude, want, 0.5, 0.15)


def test_what_is_not_a_number_counts_as_largest_and_as_equal() -> None:
    nans = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    line = torch.cat([nans, torch.tensor([0.0, torch.inf, 1.0])])[None]
    want = [rank_threshold(0.5, 0.3, twice, 6) for twice in (8, 8, 8, 0, 4, 2)]
    assert_thresholds(line, torch.tensor([want]), 0.5, 0.3)


def test_thresholds_are_the_rounded_probabilities() -> None:
    for row in (1, 2, 3, 4096):
        for twice in range(0, 2 * row - 1, max(1, row // 7)):
            share = Fraction(twice - (row - 1), row - 1) if row > 1 else Fraction(0)
            want = (Fraction(0.4) + Fraction(0.15) * share) * RESOLUTION
            assert abs(rank_threshold(0.4, 0.15, twice, row) - want) <= Fraction(1, 2) + Fraction(
                1, 2**30
            )
    assert rank_threshold(0.15, 0.15 - 1e-9, 0, 5) == 1  # what is possible stays so
    assert rank_threshold(0.85, 0.15 - 1e-9, 8, 5) == RESOLUTION - 1


def test_della_keeps_by_rank() -> None:
    row = 64
    base = torch.zeros(4000, row)
    model = torch.randn(4000, row, generator=torch.Generator().manual_seed(0))
    result = evaluate(
        all_methods()["della_linear"], base, [model],
        {"density": (0.5,), "epsilon": (0.4,), "rescale": False},
    )  # fmt: skip
    in_order = model.abs().argsort(dim=1)
    kept = (result != 0).gather(1, in_order).double().mean(dim=0)
    want = torch.linspace(0.1, 0.9, row, dtype=torch.float64)
    assert float(((kept - want).abs() / (want * (1 - want) / 4000).sqrt()).max()) < 4.5


def test_della_draws_what_the_generator_says() -> None:
    base, model = torch.zeros(3, 5), torch.arange(15.0).reshape(3, 5) % 4 + 1
    result = evaluate(
        all_methods()["della_linear"], base, [model],
        {"density": (0.5,), "epsilon": (0.3,), "rescale": False}, seed=9, name="t",
    )  # fmt: skip
    for index, value in enumerate(model.flatten().tolist()):
        start = index // 5 * 5
        row = model.flatten().tolist()[start : start + 5]
        threshold = slow_thresholds(row, 0.5, 0.3)[index - start]
        is_kept = draw_at(index, 9, "t", "della") < threshold
        assert result.flatten()[index].item() == (value if is_kept else 0)


def test_della_restores_the_norm_and_keeps_all_or_none_at_the_ends() -> None:
    base, model = torch.zeros(50, 40), torch.randn(50, 40)
    method = all_methods()["della_linear"]
    thinned = evaluate(method, base, [model], {"density": (0.5,)})
    torch.testing.assert_close(thinned.abs().sum(), model.abs().sum())
    assert torch.equal(evaluate(method, base, [model], {"density": (1.0,)}), model)
    assert not evaluate(method, base, [model], {"density": (0.0,)}).any()


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.9, 0.1), (0.5, 0.49999999999)])
def test_della_refuses_what_is_no_probability(density: float, epsilon: float) -> None:
    parameters = {"density": (density,), "epsilon": (epsilon,)}
    call = (all_methods()["della"], torch.zeros(2, 2), [torch.ones(2, 2)], parameters)
    if density == 0.5:
        evaluate(*call)
        return
    with pytest.raises(ValueError, match=r"density ± epsilon has to lie between 0 and 1"):
        evaluate(*call)


# --- rows of their own ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model_stock", "nuslerp"])
def test_a_row_by_itself_gives_the_same(name: str) -> None:
    method, parameters = all_methods()[name], PARAMETERS[name][0]
    whole = {"filter_wise": False} if name == "model_stock" else {"weight": (0.7, 0.4)}
    base, *models = inputs((6, 5, 300), FORMATS[1], "fine-tuned")
    models = models[: method.max_models]
    result = evaluate(method, base, models, parameters)
    for i in range(6):
        for j in range(5):
            alone = evaluate(method, base[i, j], [model[i, j] for model in models], whole)
            torch.testing.assert_close(result[i, j], alone, rtol=1e-6, atol=1e-7)


def plain_stock_shares(*numbers: float) -> tuple[float, float]:
    """Return what `stock_shares` does, by the formula, from Python's own numbers."""
    *lower, mean_angle = numbers
    if not all(map(math.isfinite, lower)):
        return math.nan, math.nan
    size = math.isqrt(2 * len(lower))
    rows = [lower[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(size)]
    norms = [math.sqrt(row[-1]) for row in rows]
    cosines = [
        min(max(rows[i][j] / max(norms[i] * norms[j], 1e-6), -1.0), 1.0)
        for i in range(size)
        for j in range(i)
    ]
    total = 0.0
    for cosine in cosines:
        total += math.acos(cosine) if mean_angle else cosine
    mean = math.cos(total / len(cosines)) if mean_angle else total / len(cosines)
    denominator = 1 + (size - 1) * mean
    t = 0.0 if abs(denominator) < 1e-6 else size * mean / denominator
    return t, 1 - t


@pytest.mark.parametrize("mean_angle", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_many_rows_give_the_bits_of_each_row(size: int, mean_angle: bool) -> None:
    generator = np.random.default_rng(size)
    vectors = generator.normal(size=(500, size, 4)) * 10.0 ** generator.integers(-6, 4, (500, 1, 1))
    vectors[:20] = vectors[:20, :1]  # the same
    vectors[20:40, 0] = -vectors[20:40, 1]
    vectors[40:60, 0] = 0
    gram = vectors @ vectors.transpose(0, 2, 1)
    gram[60, 0, 0], gram[61, 1, 0] = math.inf, math.nan
    gram[62] = np.where(np.eye(size, dtype=bool), 1.0, -1 / (size - 1))  # no estimate
    lower = [gram[:, i, j] for i in range(size) for j in range(i + 1)]
    got = np.stack(stock_shares(*lower, mean_angle), axis=1)
    want = [plain_stock_shares(*row, mean_angle) for row in np.stack(lower, axis=1).tolist()]
    assert np.array_equal(got.view(np.int64), np.array(want).view(np.int64))
    one = [stock_shares(*row, mean_angle) for row in np.stack(lower, axis=1).tolist()]
    assert np.array_equal(np.array(one, dtype=float).view(np.int64), got.view(np.int64))


def test_only_row_local_methods_ask_for_whole_rows() -> None:
    base, *models = inputs((7, 3), FORMATS[0], "fine-tuned")
    for name, parameters in PARAMETERS.items():
        method = all_methods()[name]
        for given_ in (parameters[0], {}):
            expression, _ = expression_of(method, base, models[: method.max_models], given_, BF16)
            wants = bool(given_) or name == "arcee_fusion"
            assert compile_expression(expression).whole_rows == wants, (name, given_)


# --- divergence -------------------------------------------------------------------------------


def spread_values() -> list[float]:
    """Return numbers from −750 to 0, dense near 0 and at the ends of the reduction's intervals."""
    values = [-(2.0**-exponent) for exponent in range(60)]
    values += [-index * 0.0437 for index in range(17_000)]
    values += [-(index + 0.5) * math.log(2) for index in range(1000)]
    return [*values, -0.0, 0.0]


def test_exp_is_within_its_bound_and_the_same_in_both_forms() -> None:
    values = spread_values()
    x = np.array(values)
    got = kernels.exp_of_negative(x.copy())
    for value, found in zip(values, got.tolist(), strict=True):
        want = math.exp(max(value, -700.0))
        assert abs(found - want) <= 3e-15 * want, value
    assert_same_bits(eager.exp_of_negative(torch.tensor(values).double()), torch.from_numpy(
        kernels.exp_of_negative(torch.tensor(values).double().numpy())
    ))  # fmt: skip
    assert np.isnan(kernels.exp_of_negative(np.array([np.nan]))).all()


def test_log_is_within_its_bound_and_the_same_in_both_forms() -> None:
    near = [1 + sign * 2.0**-exponent for exponent in range(2, 53) for sign in (1, -1)]
    far = [1.37**exponent for exponent in range(-900, 900)]
    for value, found in zip(near, kernels.log(np.array(near)).tolist(), strict=True):
        assert abs(found - math.log(value)) <= 1e-15, value
    for value, found in zip(far, kernels.log(np.array(far)).tolist(), strict=True):
        assert abs(found - math.log(value)) <= 4e-16 * abs(math.log(value)) + 1e-300, value
    both = torch.tensor([*near, *far], dtype=torch.float64)
    assert_same_bits(eager.log(both), torch.from_numpy(kernels.log(both.numpy())))


def exact_divergence(x: list[float], y: list[float]) -> float:
    """Return KL of two rows, by sums without rounding."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        a, b = ([mpmath.exp(value) for value in row] for row in (x, y))
        total, other = mpmath.fsum(a), mpmath.fsum(b)
        shift = mpmath.fsum(p * (s - t) for p, s, t in zip(a, x, y, strict=True)) / total
        return float(shift + mpmath.log(other / total))


@pytest.mark.parametrize("scale", [1e-4, 0.1, 30.0])
def test_divergence_against_exact_sums(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 900, generator=generator)
    y = x + torch.randn(3, 900, generator=generator) * scale
    found = ops.divergence_of_rows(x, y)
    assert torch.equal(found, found[:, :1].expand(3, 900))
    for row in range(3):
        want = exact_divergence(x[row].double().tolist(), y[row].double().tolist())
        assert found[row, 0].item() == pytest.approx(want, rel=2e-7, abs=1e-14)
    assert not ops.divergence_of_rows(x, x + 0.0).any()


def test_arcee_fusion_takes_what_stands_out() -> None:
    base = torch.zeros(4, 8)
    other = torch.full((4, 8), 0.01) * torch.linspace(1, 1.1, 8)
    other[1, 3] = 5.0
    result = evaluate(all_methods()["arcee_fusion"], base, [other], {})
    want = torch.zeros(4, 8)
    want[1] = other[1]  # the row's divergence lifts all of its elements above the others
    assert torch.equal(result, want)


def test_arcee_fusion_takes_all_where_no_row_moves() -> None:
    base, other = torch.zeros(5, 1), torch.arange(5.0)[:, None]
    assert torch.equal(evaluate(all_methods()["arcee_fusion"], base, [other], {}), other)

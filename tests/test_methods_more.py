"""The methods beyond the first eight: bits on larger tensors, worked examples, refusals.

Bits on small tensors of any content are checked in `test_streaming_equals_eager`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError
from mergeconf.execution.local import Settings
from mergeconf.execution.program import compile_expression
from mergeconf.methods import all_methods
from mergeconf.methods.apply import evaluate
from support.harness import (
    TORCH,
    assert_same_bits,
    eager_method,
    expression_of,
    stream_method,
)

BF16, F16, F32 = DType.bfloat16, DType.float16, DType.float32
SHAPES = ((), (0,), (1,), (7,), (5000,), (300, 700), (600, 1025), (280, 750))
LARGE = SHAPES[-3:]
FORMATS = ((BF16,) * 6, (F32,) * 6, (F16,) * 6, (F32, BF16, F16, BF16, F32, F16))
RUNS = (
    Settings(threads=2), Settings(threads=1, tile=1000, chunk=65_536),
    Settings(threads=3, tile=65_536 * 4, chunk=65_536 * 8),
)  # fmt: skip
WEIGHTS = (0.7, -0.3, 1.5, 0.2, 0.9)
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "multislerp": [{}, {"weight": WEIGHTS, "normalize_weights": False}],
    "karcher": [{}, {"max_iter": 40, "tol": 1e-9}],
    "nuslerp": [{}, {"weight": WEIGHTS}],
    "model_stock": [{}, {"mean_angle": True}],
    "breadcrumbs": [
        {"density": (0.3, 0.9, 1.0, 0.0, 0.5), "weight": WEIGHTS, "rescale": True},
        {"density": (0.4,) * 5, "gamma": (0.0, 0.1, 0.6, 1.0, 0.01), "normalize": True},
    ],
    "breadcrumbs_ties": [{"density": (0.3, 0.9, 1.0, 0.0, 0.5), "weight": WEIGHTS}],
    "sce": [{}, {"select_topk": 0.2}, {"select_topk": 0.9, "weight_floor": 0.0}],
    "nearswap": [{"t": 0.003}],
    "ram": [{}, {"epsilon": 0.01}],
    "ramplus_tl": [{}, {"epsilon": 0.01, "alpha": 3.0}],
}
FILLS = ("fine-tuned", "as the base", "zero")


def inputs(
    shape: tuple[int, ...], formats: tuple[DType, ...], fill: str, seed: int = 0
) -> list[torch.Tensor]:
    """Return a base and five models."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * (fill != "zero")
    tensors = []
    for index, dtype in enumerate(formats):
        delta = 0.01 * torch.randn(shape, generator=generator)
        changed = torch.rand(shape, generator=generator) < 0.5
        is_tuned = index > 0 and fill == "fine-tuned"
        tensors.append((base + delta * changed if is_tuned else base).to(TORCH[dtype]))
    return tensors


def assert_streams(call: tuple[Any, ...], out_dtype: DType, runs: Sequence[Settings]) -> None:
    """Compare streaming with eager, refusals included."""
    try:
        want = eager_method(*call, out_dtype=out_dtype)
    except ValueError as refusal:
        with pytest.raises((ValueError, ExecutionError), match=re.escape(str(refusal))):
            stream_method(*call, out_dtype=out_dtype)
        return
    for settings in runs:
        got = stream_method(*call, out_dtype=out_dtype, settings=settings)
        assert_same_bits(got.tensor, want)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_streaming_gives_the_bits_of_eager(name: str, fill: str) -> None:
    method = all_methods()[name]
    for turn, shape in enumerate(SHAPES):
        is_large = shape in LARGE
        for number in (turn % 4,) if is_large else range(4):
            formats = FORMATS[number]
            base, *models = inputs(shape, formats, fill, seed=number)
            count = min(method.max_models or 2 + number, 5)
            for parameters in PARAMETERS[name]:
                arguments = {
                    key: value[:count] if isinstance(value, tuple) else value
                    for key, value in parameters.items()
                }
                with_base = None if method.base == "unused" else base
                call = (method, with_base, models[:count], arguments)
                assert_streams(call, formats[0], RUNS if is_large else RUNS[:1])


@pytest.mark.parametrize("name", ["multislerp", "karcher", "nuslerp", "model_stock"])
def test_methods_in_the_span_take_one_sweep_and_one_more(name: str) -> None:
    method = all_methods()[name]
    base, *models = inputs((7,), FORMATS[0], "fine-tuned")
    with_base = None if method.base == "unused" else base
    expression, _ = expression_of(method, with_base, models[:2], {}, BF16)
    assert compile_expression(expression).passes == 2


def floats(*values: float) -> torch.Tensor:
    """Return a float32 tensor."""
    return torch.tensor(values, dtype=torch.float32)


def merge(name: str, base: torch.Tensor | None, *models: torch.Tensor, **given: Any) -> list[float]:
    """Return the elements of a merge, rounded for comparison."""
    result = evaluate(all_methods()[name], base, models, given)
    return [round(value, 5) for value in result.tolist()]


EAST, NORTH = floats(2.0, 0.0), floats(0.0, 4.0)


def test_spherical_means_of_two_right_angles() -> None:
    half = 3 * math.sqrt(0.5)  # the mean length, at 45 degrees
    assert merge("multislerp", None, EAST, NORTH, weight=(1.0, 1.0)) == [
        round(half, 5), round(half, 5),
    ]  # fmt: skip
    assert merge("karcher", None, EAST, NORTH) == [round(half, 5), round(half, 5)]
    # the sines apply to the tensors as they are: no mean length
    assert merge("nuslerp", None, EAST, NORTH) == [
        round(2 * math.sqrt(0.5), 5), round(4 * math.sqrt(0.5), 5),
    ]  # fmt: skip


def test_karcher_mean_of_three() -> None:
    angles = (0.0, 0.3, 1.2)
    tensors = [floats(math.cos(angle), math.sin(angle)) for angle in angles]
    assert merge("karcher", None, *tensors) == [round(math.cos(0.5), 5), round(math.sin(0.5), 5)]


def test_opposite_tensors() -> None:
    assert merge("karcher", None, EAST, -EAST) == [2.0, 0.0]
    assert merge("multislerp", None, EAST, -EAST, weight=(1.0, 1.0)) == [0.0, 0.0]
    assert merge("nuslerp", None, EAST, -EAST, weight=(3.0, 1.0)) == [1.0, 0.0]
    models = [EAST, -EAST, NORTH]
    method = all_methods()["multislerp"]
    with pytest.raises(ValueError, match="sum to zero"):
        evaluate(method, None, models, {"weight": (1.0, 1.0, 0.0)})


def test_model_stock_at_right_angles_keeps_the_base() -> None:
    zero = floats(0.0, 0.0)
    assert merge("model_stock", zero, EAST, NORTH) == [0.0, 0.0]
    assert merge("model_stock", zero, EAST, 2 * EAST) == [3.0, 0.0]


def test_model_stock_averages_cosines_or_angles() -> None:
    zero = floats(0.0, 0.0)
    angles = (0.0, 0.2, 1.4)
    tensors = [floats(math.cos(angle), math.sin(angle)) for angle in angles]
    pairs = (0.2, 1.4, 1.2)
    for mean_angle, cosine in (
        (False, sum(map(math.cos, pairs)) / 3),
        (True, math.cos(sum(pairs) / 3)),
    ):
        t = 3 * cosine / (1 + 2 * cosine)
        want = [round(t * sum(f(a) for a in angles) / 3, 5) for f in (math.cos, math.sin)]
        assert merge("model_stock", zero, *tensors, mean_angle=mean_angle) == want


def test_breadcrumbs_drops_both_tails() -> None:
    base = torch.zeros(10)
    model = floats(1, -2, 3, -4, 5, -6, 7, -8, 9, -10)
    tails = {"density": (0.5,), "gamma": (0.2,)}
    assert merge("breadcrumbs", base, model, **tails) == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]
    # no outliers are dropped where too few elements would be left
    tails = {"density": (0.9,), "gamma": (0.2,)}
    assert merge("breadcrumbs", base, model, **tails) == [1, -2, 3, -4, 5, -6, 7, -8, 9, 0]


def test_breadcrumbs_keeps_equal_magnitudes_together() -> None:
    base, model = torch.zeros(6), floats(1, 1, 2, -2, 3, -3)
    tails = {"density": (0.4,), "gamma": (0.17,)}  # one outlier is dropped, two are kept
    assert merge("breadcrumbs", base, model, **tails) == [0, 0, 2, -2, 3, -3]


def test_ties_with_density_zero_keeps_nothing() -> None:
    base, model = floats(1, 1), floats(2, 3)
    assert merge("ties", base, model, density=(0.0,)) == [1, 1]


def test_sce_selects_among_the_variances_above_zero() -> None:
    base = torch.zeros(6)
    first, second = floats(1, 1, 3, 5, 2, 2), floats(1, 1, 1, 1, 1, 2)
    # variances 0 0 1 4 .25 0: of three above 0 two thirds are kept; weights 34/36 and 2/36
    merged = merge("sce", base, first, second, select_topk=0.7)
    want = [0, 0, (3 * 34 + 1 * 2) / 36, (5 * 34 + 1 * 2) / 36, 0, 0]
    assert merged == [round(value, 5) for value in want]
    assert merge("sce", base, first, second, select_topk=0.3) == [0] * 6


def test_sce_weights_by_energy_unless_all_is_small() -> None:
    base, small = torch.zeros(2), 1e-4
    first, second = floats(3 * small, 0), floats(small, 0)
    method = all_methods()["sce"]
    equal = evaluate(method, base, [first, second], {})
    assert equal[0].item() == pytest.approx(2 * small)
    weighted = evaluate(method, base, [first, second], {"weight_floor": 0.0})
    assert weighted[0].item() == pytest.approx((3 * 0.9 + 0.1) * small)


def test_ram_keeps_what_one_changed_and_averages_what_several_did() -> None:
    base = torch.zeros(4)
    first, second = floats(4, 4, 0, 0), floats(0, 2, 2, 0)
    assert merge("ram", base, first, second) == [4, 3, 2, 0]
    # of each model's two changes one is shared: 1 + 0.1 · min(1, 0.2)
    assert merge("ramplus_tl", base, first, second) == [4.08, 3, 2.04, 0]


def test_nearswap_moves_by_t_at_most() -> None:
    base, other = floats(0, 0, 1), floats(0.5, 4, 1)
    assert merge("nearswap", base, other, t=1.0) == [0.5, 1, 1]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("multislerp", {"weight": (1.0, -1.0)}, "weights sum to 0"),
    ],
)
def test_refusals(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(name, torch.zeros(2), EAST, NORTH, **parameters)


@pytest.mark.parametrize("name", ["multislerp", "karcher", "model_stock", "sce"])
def test_a_value_that_is_not_finite_is_no_silent_ruin(name: str) -> None:
    method = all_methods()[name]
    base, *models = inputs((50,), FORMATS[1], "fine-tuned")
    models[1][7] = torch.nan
    with_base = None if method.base == "unused" else base
    with pytest.raises(ExecutionError, match="not a finite number"):
        stream_method(method, with_base, models, {})

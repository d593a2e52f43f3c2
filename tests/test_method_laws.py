"""What the methods promise holds, and they compute what their formulas say.

Laws (`Method.laws`) are checked on random inputs, for every method that promises them; a method
that promises none has to have a worked example in `corpus/`, whose numbers come from outside this
project's code. The formulas of METHODS.md are written here a second time, in float64.

    identity         merging identical models gives that model
    base_identity    models equal to the base give the base
    order            the order of the models, each with its own parameters, does not matter
    zero_weight      a model of weight 0 takes no part
    between          the result lies between the smallest and the largest input
    copies_elements  every element of the result is one of the inputs', bit for bit
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.errors import ExecutionError
from mergeconf.methods import Method, all_methods
from support.harness import bits_of, eager_method, stream_method
from support.philox import draw_at
from support.strategies import FLOATS, models_of, parameters_of, tensors

F64 = npt.NDArray[np.float64]
METHODS = all_methods()
CORPUS = Path(__file__).parent / "corpus"
SHAPE = (19, 23)
UNIT = 2.0**-24
"""Relative error of one float32 operation."""
TOGETHER = settings(max_examples=max(25, settings.default.max_examples // 4))


def merge(
    method: Method,
    base: torch.Tensor | None,
    models: list[torch.Tensor],
    parameters: dict[str, Any],
    out_dtype: DType | None = None,
) -> torch.Tensor:
    """Merge as a run does; a combination that the method refuses is no example."""
    try:
        return stream_method(method, base, models, parameters, out_dtype=out_dtype).tensor
    except (ValueError, ExecutionError) as refusal:
        assume("not a finite number" in str(refusal))  # that is no refusal but a broken law
        raise


def weights_of(method: Method, models: int) -> st.SearchStrategy[dict[str, Any]]:
    """Positive weights, where the method has weights; nothing else differs from the defaults."""
    required = {
        name: st.floats(parameter.bounds.low or 0, parameter.bounds.high or 1)
        for name, parameter in method.parameters.items()
        if parameter.required
    }
    positive = st.floats(0.125, 4)
    weight = {"weight": st.tuples(*[positive] * models)} if "weight" in method.parameters else {}
    return st.fixed_dictionaries(required, optional=weight)


@st.composite
def with_positive_weights(draw: st.DrawFn, method: Method, models: int) -> dict[str, Any]:
    """Any parameters, but weights that do not cancel each other."""
    values = draw(parameters_of(method, models))
    if "weight" in method.parameters:
        values["weight"] = tuple(draw(st.floats(0.125, 4)) for _ in range(models))
    return values


def fine_tuned(
    draw: st.DrawFn | Callable[[st.SearchStrategy[Any]], Any], count: int, dtype: DType
) -> list[torch.Tensor]:
    seed = draw(st.integers(0, 2**32 - 1))
    return tensors(count, SHAPE, [dtype] * count, "fine-tuned", seed)


# --- laws ------------------------------------------------------------------------------------


def identity(method: Method, data: st.DataObject) -> None:
    """In bfloat16 rounding brings back the model exactly: the error is far below half a step."""
    count = data.draw(models_of(method))
    (model,) = fine_tuned(data.draw, 1, DType.bfloat16)
    base = None if method.base == "unused" else model
    if method.base == "optional" and data.draw(st.booleans()):
        base = None
    values = data.draw(weights_of(method, count))
    assert torch.equal(merge(method, base, [model] * count, values), model)


def base_identity(method: Method, data: st.DataObject) -> None:
    count = data.draw(models_of(method))
    (base,) = fine_tuned(data.draw, 1, DType.bfloat16)
    values = data.draw(parameters_of(method, count))
    assert torch.equal(merge(method, base, [base] * count, values), base)


def order(method: Method, data: st.DataObject) -> None:
    """Up to rounding: sums of up to 8 terms, scales and quotients of sums, in float32."""
    count = data.draw(models_of(method, 5).filter(lambda number: number > 1))
    base, *models = fine_tuned(data.draw, count + 1, DType.float32)
    values = data.draw(with_positive_weights(method, count))
    # A large tolerance counts any sum of directions as none: karcher then begins at the first.
    values.pop("tol", None)
    if method.base == "unused" or (method.base == "optional" and data.draw(st.booleans())):
        base = None
    places = data.draw(st.permutations(range(count)))
    moved = {
        name: tuple(value[place] for place in places)
        if method.parameters[name].per_model
        else value
        for name, value in values.items()
    }
    one = merge(method, base, models, values)
    two = merge(method, base, [models[place] for place in places], moved)
    largest = max(tensor.abs().max() for tensor in models)
    scale = max(1.0, abs(values.get("lambda", 1.0))) * sum(values.get("weight", (1,)))
    assert (one - two).abs().max() <= 64 * count * UNIT * scale * largest


def zero_weight(method: Method, data: st.DataObject) -> None:
    count = data.draw(models_of(method).filter(lambda number: number > method.min_models))
    base, *models = fine_tuned(data.draw, count + 1, DType.float32)
    values = data.draw(with_positive_weights(method, count))
    out = data.draw(st.integers(0, count - 1))
    values["weight"] = tuple(0.0 if i == out else w for i, w in enumerate(values["weight"]))
    without = {
        name: value[:out] + value[out + 1 :] if method.parameters[name].per_model else value
        for name, value in values.items()
    }
    first = None if method.base == "unused" else base
    one = merge(method, first, models, values)
    two = merge(method, first, models[:out] + models[out + 1 :], without)
    assert torch.equal(one, two)


def between(method: Method, data: st.DataObject) -> None:
    """Up to the rounding of as many products and sums as there are models, and of a quotient."""
    count = data.draw(models_of(method))
    base, *models = fine_tuned(data.draw, count + 1, DType.float32)
    values = data.draw(weights_of(method, count))
    inputs = models if method.base == "unused" else [base, *models]
    result = merge(method, None if method.base == "unused" else base, models, values)
    stack = torch.stack(inputs)
    room = 0.0 if method.copies else (2 * count + 3) * UNIT * stack.abs().amax(dim=0)
    assert (result >= stack.amin(dim=0) - room).all()
    assert (result <= stack.amax(dim=0) + room).all()


def copies_elements(method: Method, data: st.DataObject) -> None:
    count = data.draw(models_of(method))
    dtype = data.draw(st.sampled_from(FLOATS))
    seed = data.draw(st.integers(0, 2**32 - 1))
    inputs = tensors(count + 1, SHAPE, [dtype] * (count + 1), "any bits", seed)
    base = None if method.base == "unused" else inputs[0]
    result = merge(method, base, inputs[1:], data.draw(parameters_of(method, count)))
    allowed = torch.stack([bits_of(tensor) for tensor in inputs])
    assert (bits_of(result) == allowed).any(dim=0).all()


LAWS = {law.__name__: law for law in (
    identity, base_identity, order, zero_weight, between, copies_elements,
)}  # fmt: skip
PROMISES = [(name, law) for name, method in METHODS.items() for law in sorted(method.laws)]


@pytest.mark.parametrize(("name", "law"), PROMISES)
@TOGETHER
@given(data=st.data())
def test_law(name: str, law: str, data: st.DataObject) -> None:
    LAWS[law](METHODS[name], data)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
@pytest.mark.parametrize("weight", [1e-50, 1e-116])
def test_weights_that_round_to_nothing(name: str, weight: float) -> None:
    """A weight that is 0 in float32 takes no part; nothing is divided by it."""
    base, model = tensors(2, SHAPE, [DType.float32] * 2, "fine-tuned", seed=3)
    values = {"weight": (weight, 1.0), "normalize": True}
    result = merge(METHODS[name], base, [base.roll(1), model], values)
    assert torch.allclose(result, model, rtol=4 * UNIT, atol=4 * UNIT)
    alone = merge(METHODS[name], base, [model], {"weight": (weight,), "normalize": True})
    assert alone.isfinite().all()


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "dare_linear"])
def test_weight_beyond_float32_is_a_refusal(name: str) -> None:
    base, model = tensors(2, SHAPE, [DType.float32] * 2, "fine-tuned", seed=3)
    first = None if METHODS[name].base == "unused" else base
    with pytest.raises((ValueError, ExecutionError)):
        stream_method(METHODS[name], first, [model], {"weight": (1e39,), "normalize": True})


def test_rescaling_by_a_density_that_draws_cannot_have() -> None:
    """What is kept with probability 2^-16 at least is made up for by 2^16 at most."""
    base, model = tensors(2, (200, 1000), [DType.float32] * 2, "fine-tuned", seed=3)
    values = {"density": (1e-50,), "rescale_by": "inverse_density"}
    result = stream_method(METHODS["dare_linear"], base, [model], values, name="w").tensor
    assert (result - base).abs().max() <= 2**16 * (model - base).abs().max() * 1.01


def test_every_law_is_promised_by_a_method() -> None:
    assert {law for _, law in PROMISES} == set(LAWS)


# --- worked examples -------------------------------------------------------------------------

EXAMPLES = [
    (path.stem, example["name"], example)
    for path in sorted(CORPUS.glob("*.json"))
    for example in json.loads(path.read_text(encoding="utf-8"))
]


def test_corpus_is_complete() -> None:
    names = {name for name, _, _ in EXAMPLES}
    assert names <= set(METHODS)
    assert {name for name, method in METHODS.items() if not method.laws} <= names
    assert set(FORMULAS) <= names
    assert len(EXAMPLES) >= 23
    assert all(example["provenance"] for _, _, example in EXAMPLES)


@pytest.mark.parametrize(
    ("name", "case", "example"), EXAMPLES, ids=[f"{name}: {case}" for name, case, _ in EXAMPLES]
)
def test_worked_example(name: str, case: str, example: dict[str, Any]) -> None:
    """Numbers that float32 holds come out exactly where the way there is exact, too."""
    method = METHODS[name]
    base = None if "base" not in example else torch.tensor(example["base"], dtype=torch.float32)
    models = [torch.tensor(values, dtype=torch.float32) for values in example["models"]]
    parameters = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in example["parameters"].items()
    }
    result = stream_method(method, base, models, parameters, name="t").tensor.double()
    want = torch.tensor(example["expected"], dtype=torch.float64)
    assert torch.allclose(result, want, rtol=4 * UNIT, atol=4 * UNIT), (case, result, want)
    oracle = eager_method(method, base, models, parameters, name="t")
    assert torch.equal(oracle.double(), result)


# --- formulas --------------------------------------------------------------------------------

SEED, NAME = 77, "model.norm.weight"


def draws(stream: str, model: int, numel: int) -> npt.NDArray[np.int64]:
    return np.array([draw_at(index, SEED, NAME, stream, model) for index in range(numel)])


def task_sum(deltas: list[F64], weight: tuple[float, ...], normalize: bool) -> F64:
    total = sum(w * delta for w, delta in zip(weight, deltas, strict=True))
    return total / (sum(weight) if normalize else 1)


def elected_sum(deltas: list[F64], weight: tuple[float, ...], normalize: bool) -> F64:
    weighted = np.stack([w * delta for w, delta in zip(weight, deltas, strict=True)])
    sign = np.where(weighted.sum(axis=0) < 0, -1, 1)
    agree = np.sign(weighted) == sign
    divisor = (agree * np.array(weight)[:, None]).sum(axis=0)
    total = (weighted * agree).sum(axis=0)
    return total / np.where(divisor == 0, 1, divisor) if normalize else total


def dropped(deltas: list[F64], density: tuple[float, ...], by_norm: bool) -> list[F64]:
    kept = []
    for model, (delta, share) in enumerate(zip(deltas, density, strict=True)):
        mask = draws("dare", model, len(delta)) < round(share * 65_536)
        scale = np.abs(delta).sum() / np.abs(delta * mask).sum() if by_norm else 1 / share
        kept.append(delta * mask * scale)
    return kept


def linear(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    weight = (0.7, 0.2, 1.4)
    return {"weight": weight}, task_sum(models, weight, True)


def task_arithmetic(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    weight = (0.7, -0.2, 1.4)
    total = task_sum([model - base for model in models], weight, True)
    return {"weight": weight, "normalize": True, "lambda": 0.8}, base + 0.8 * total


def slerp(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    other, t = models[0], 0.3
    cosine = base @ other / np.linalg.norm(base) / np.linalg.norm(other)
    angle = np.arccos(cosine)
    total = np.sin((1 - t) * angle) * base + np.sin(t * angle) * other
    return {"t": t}, total / np.sin(angle)


def ties(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    density, weight, trimmed = (0.2, 0.5, 0.9), (1.0, 0.6, 0.3), []
    for model, share in zip(models, density, strict=True):
        delta = model - base
        k = max(1, int(share * len(delta)))
        trimmed.append(np.where(np.abs(delta) >= np.sort(np.abs(delta))[-k], delta, 0))
    total = elected_sum(trimmed, weight, True)
    return {"density": density, "weight": weight, "lambda": 1.1}, base + 1.1 * total


def dare_linear(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    density, weight = (0.5, 0.25, 0.75), (1.0, 0.6, 0.3)
    kept = dropped([model - base for model in models], density, by_norm=True)
    return {"density": density, "weight": weight}, base + task_sum(kept, weight, False)


def dare_ties(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    density, weight = (0.5, 0.25, 0.75), (1.0, 0.6, 0.3)
    kept = dropped([model - base for model in models], density, by_norm=False)
    values = {"density": density, "weight": weight, "rescale_by": "inverse_density"}
    return values, base + elected_sum(kept, weight, False)


def parameter_selection(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    ticket = draws("parameter_selection", 0, len(base))
    result = base.copy()
    for place in range(len(base)):
        changed = [model[place] for model in models if model[place] != base[place]]
        if changed:
            result[place] = changed[ticket[place] * len(changed) // 65_536]
    return {}, result


def passthrough(base: F64, models: list[F64]) -> tuple[dict[str, Any], F64]:
    return {"scale": 0.3}, 0.3 * models[0]


FORMULAS = {formula.__name__: formula for formula in (
    linear, task_arithmetic, slerp, ties, dare_linear, dare_ties, parameter_selection, passthrough,
)}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    """Within 32 roundings of float32, of the largest term."""
    method = METHODS[name]
    values = tensors(4, (997,), [DType.float32] * 4, "fine-tuned", seed=5)
    base, *models = values
    if name == "slerp":
        models[0] = models[0] + values[0].roll(1) * 0.7  # an angle that is worth the name
    models = models[: method.max_models]
    parameters, want = FORMULAS[name](
        base.numpy().astype(np.float64), [model.numpy().astype(np.float64) for model in models]
    )
    first = None if method.base == "unused" else base
    result = stream_method(method, first, models, parameters, seed=SEED, name=NAME).tensor
    largest = max(float(tensor.abs().max()) for tensor in (base, *models))
    error = np.abs(result.numpy().astype(np.float64) - want).max()
    assert error <= 32 * UNIT * largest


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_restores_the_norm(density: float) -> None:
    base, model = tensors(2, (40_000,), [DType.float32] * 2, "fine-tuned", seed=1)
    base = torch.zeros_like(base)
    result = stream_method(
        METHODS["dare_linear"], base, [model], {"density": (density,)}, name="w"
    ).tensor
    norm = model.double().abs().sum()
    assert abs(result.double().abs().sum() - norm) <= 8 * UNIT * norm
    share = (result != 0).double().mean().item()  # 5 standard deviations: false alarms 6e-7
    assert abs(share - density) <= 5 * (density * (1 - density) / 40_000) ** 0.5 + 2**-16


def test_dare_is_unbiased_by_inverse_density() -> None:
    """The mean over seeds is the sum of deltas; 5 standard deviations of the mean over all."""
    base = torch.zeros(2000)
    models = [torch.full((2000,), 1.0), torch.full((2000,), -3.0)]
    values = {"density": (0.3, 0.6), "rescale_by": "inverse_density"}
    total = torch.zeros(2000, dtype=torch.float64)
    for seed in range(100):
        total += stream_method(METHODS["dare_linear"], base, models, values, seed=seed).tensor
    variance = 1 * 0.7 / 0.3 + 9 * 0.4 / 0.6
    error = total.mean().item() / 100 - (1 - 3)
    assert abs(error) <= 5 * (variance / (100 * 2000)) ** 0.5 + 1e-4

"""Parameter selection does what the paper says, by statistics, and copies bits.

Seeds are fixed, so a test either always passes or always fails; the confidence says how likely a
sound generator would have been to fail it: every comparison allows Z standard deviations, 6e-7
two-sided. Probabilities are multiples of 2^-15, which `ROUNDING` allows for.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.dtypes import DType
from mergeconf.execution.local import Settings
from mergeconf.methods import all_methods
from support.harness import Outcome, bits_of, stream_method
from support.philox import draw_at
from support.strategies import SPECIAL

METHOD = all_methods()["parameter_selection"]
N = 400_000
Z = 5.0
ROUNDING = 2**-14


def select(
    base: torch.Tensor | None,
    models: list[torch.Tensor],
    seed: int = 0,
    name: str = "w",
    **values: Any,
) -> Outcome:
    return stream_method(METHOD, base, models, values, seed=seed, name=name, settings=Settings())


def constants(*values: float, size: int = N) -> list[torch.Tensor]:
    """Return tensors that say in every element whose it is."""
    return [torch.full((size,), value, dtype=torch.bfloat16) for value in values]


def assert_share(chosen: torch.Tensor, probability: float) -> None:
    """Compare how often something happened with its probability."""
    share = chosen.to(torch.float64).mean().item()
    spread = math.sqrt(probability * (1 - probability) / chosen.numel())
    assert abs(share - probability) <= Z * spread + ROUNDING, (share, probability)


WEIGHTS = [
    (1.0, 1.0),
    (1.0, 1.0, 1.0),
    (0.1, 0.7, 0.2),
    (3.0, 0.0, 1.0),
    (2.0, 2.0, 0.0, 2.0),
    (1e-9, 5.0, 1.0, 0.25),
    (1.0,) * 8,
]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("resample", [0, "all"])
def test_models_are_drawn_in_proportion_to_weights(
    weight: tuple[float, ...], resample: int | str
) -> None:
    models = constants(*range(1, len(weight) + 1))
    base = None if resample == 0 else torch.zeros_like(models[0])
    result = select(base, models, weight=weight, resample=resample).tensor
    for index, w in enumerate(weight):
        assert_share(result == index + 1, w / sum(weight))
        if w == 0:
            assert not (result == index + 1).any()


def test_expectation_is_the_weighted_mean() -> None:
    """Over 300 seeds, per element; the mean over elements is compared as well."""
    generator = torch.Generator().manual_seed(3)
    models = [torch.randn(2000, generator=generator) for _ in range(3)]
    weight = (0.5, 0.2, 0.3)
    seeds = 300
    total = torch.zeros(2000, dtype=torch.float64)
    for seed in range(seeds):
        total += select(None, models, seed=seed, weight=weight, resample=0).tensor
    mean = sum(w * model.double() for w, model in zip(weight, models, strict=True))
    second = sum(w * model.double() ** 2 for w, model in zip(weight, models, strict=True))
    spread = ((second - mean**2) / seeds).sqrt()
    error = (total / seeds - mean) / spread
    assert error.abs().max() < 6  # 2000 comparisons: false alarms 4e-6
    assert abs(error.mean().item()) < Z / math.sqrt(2000)
    assert abs((error**2).mean().item() - 1) < Z * math.sqrt(2 / 2000) + 0.05


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.3, 0.2, 0.4)])
@pytest.mark.parametrize("changed", [1, 2, 4])
def test_resampling_law(n: int, weight: tuple[float, ...], changed: int) -> None:
    """P(still base) = (1 − q)^(n+1); what was learned is drawn in proportion to weights."""
    base, *models = constants(0, *([1, 2, 3, 4][:changed] + [0] * (4 - changed)))
    result = select(base, models, weight=weight, resample=n).tensor
    q = sum(weight[:changed]) / sum(weight)
    still = (1 - q) ** (n + 1)
    assert_share(result == 0, still)
    for index in range(changed):
        assert_share(result == index + 1, (1 - still) * weight[index] / sum(weight[:changed]))


@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0), (0.1, 0.7, 0.2), (5.0, 0.0, 1.0)])
def test_all_draws_among_those_that_changed(weight: tuple[float, ...]) -> None:
    patterns = list(itertools.product([False, True], repeat=3))
    kind = torch.arange(N) % 8
    base = torch.zeros(N, dtype=torch.float16)
    models = []
    for index in range(3):
        did = torch.tensor([pattern[index] for pattern in patterns])[kind]
        models.append(torch.where(did, float(index + 1), 0.0).to(torch.float16))
    outcome = select(base, models, weight=weight)
    for number, pattern in enumerate(patterns):
        result = outcome.tensor[kind == number]
        total = sum(w for w, did in zip(weight, pattern, strict=True) if did)
        if total == 0:  # nobody changed it, or only those that are never drawn
            assert (result == 0).all()
            continue
        assert not (result == 0).any()
        for index, did in enumerate(pattern):
            assert_share(result == index + 1, weight[index] * did / total)
    counts = outcome.counts
    assert [counts[f"changed:{index}"] for index in range(3)] == [N // 2] * 3
    assert counts["changed_somewhere"] == N // 8 * 7
    assert counts["changed_somewhere:of"] == N


def test_all_with_equal_weights_has_the_mean_of_the_changes_as_its_expectation() -> None:
    """The deterministic twin is `ram` with ε = 0: 0.5 and 2.0 changed, the third did not."""
    base, *models = constants(1.0, 0.5, 2.0, 1.0)
    result = select(base, models).tensor.double()
    assert abs(result.mean().item() - 1.25) <= Z * 0.75 / math.sqrt(N) + ROUNDING


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("resample", [0, 2, "all"])
def test_every_element_is_one_of_the_inputs(dtype: torch.dtype, resample: int | str) -> None:
    """Bit for bit, of any bits: NaN with a message, infinities, −0, subnormal numbers."""
    generator = torch.Generator().manual_seed(11)
    size = torch.empty(0, dtype=dtype).element_size()
    inputs = [
        torch.randint(0, 256, (5000 * size,), generator=generator, dtype=torch.uint8).view(dtype)
        for _ in range(4)
    ]
    base, *models = inputs
    models[1] = torch.where(torch.arange(5000) % 3 == 0, base, models[1])
    result = bits_of(select(base, models, resample=resample).tensor)
    allowed = torch.stack([bits_of(tensor) for tensor in (models if resample == 0 else inputs)])
    assert (result == allowed).any(dim=0).all()


@pytest.mark.parametrize("resample", [0, 1, "all"])
def test_one_model_is_copied(resample: int | str) -> None:
    values = torch.tensor([*SPECIAL, 0.5], dtype=torch.float64).to(torch.bfloat16).repeat(300)
    base = values.roll(1)
    result = select(base, [values], resample=resample).tensor
    changed = ~((values == base) | (values.isnan() & base.isnan()))
    if resample == 0:
        assert torch.equal(bits_of(result), bits_of(values))
    # where the model has learned nothing −0 and +0 are one value, and the base's is kept
    assert torch.equal(bits_of(result)[changed], bits_of(values)[changed])
    assert torch.equal(bits_of(result)[~changed], bits_of(base)[~changed]) or resample == 0


def test_models_equal_to_the_base_give_the_base() -> None:
    base = torch.randn(3001, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for resample in (0, 1, "all"):
        outcome = select(base, [base.clone()] * 3, resample=resample)
        assert torch.equal(bits_of(outcome.tensor), bits_of(base))
        assert outcome.counts["changed_somewhere"] == 0


def test_zero_equals_negative_zero() -> None:
    base = torch.tensor([0.0, -0.0, 0.0, -0.0] * 500)
    model = torch.tensor([-0.0, 0.0, 1.0, -1.0] * 500)
    other = torch.tensor([0.0, -0.0, 0.0, -0.0] * 500)
    outcome = select(base, [model, other])
    assert outcome.counts["changed:0"] == 1000
    assert outcome.counts["changed:1"] == 0
    want = torch.tensor([0.0, -0.0, 1.0, -1.0] * 500)
    assert torch.equal(bits_of(outcome.tensor), bits_of(want))


def test_formats_are_compared_in_the_narrower_one() -> None:
    base = torch.full((2048,), 1.0, dtype=torch.bfloat16)
    rounds_to_base = torch.full((2048,), 1.0 + 2**-10)
    learned = torch.full((2048,), 1.25)
    outcome = select(base, [rounds_to_base, learned])
    assert outcome.counts["changed:0"] == 0
    assert (outcome.tensor == 1.25).all()
    outcome = stream_method(METHOD, base, [learned], {}, out_dtype=DType.float64)
    assert outcome.tensor.dtype == torch.float64


def test_elements_are_chosen_independently() -> None:
    """Neighbours, elements a tile or a block apart, tensors, seeds: no correlation."""
    models = constants(0, 1)
    first = select(None, models, resample=0).tensor.double()
    others = [first.roll(distance) for distance in (1, 2, 15, 16, 17, 1000, 65_536)]
    others.append(select(None, models, resample=0, name="w2").tensor.double())
    others.append(select(None, models, resample=0, seed=1).tensor.double())
    for other in others:
        correlation = ((first - 0.5) * (other - 0.5)).mean().item() * 4
        assert abs(correlation) <= Z / math.sqrt(N)


def test_repeated_draws_are_independent() -> None:
    """With two models, one changed: were the second draw the first, 1/2 would stay, not 1/4."""
    base, *models = constants(0, 1, 0)
    once = select(base, models, resample=0).tensor
    twice = select(base, models, resample=1).tensor
    assert (twice[once == 1] == 1).all()  # more draws only replace what was the base's
    assert_share(twice[once == 0] == 1, 0.5)


def test_a_third_model_moves_no_more_than_its_share() -> None:
    """The choice between two groups of models depends on the draw alone."""
    two = select(None, constants(1, 2), resample=0, weight=(1.0, 1.0)).tensor
    three = select(None, constants(1, 2, 2), resample=0, weight=(2.0, 1.0, 1.0)).tensor
    assert_share(two != three, 0.0)


def test_choice_is_that_of_the_definition() -> None:
    models = constants(0, 1, 2, size=3000)
    result = select(None, models, resample=0, seed=9, name="a.b").tensor
    for index in (0, 1, 15, 16, 999, 1000, 2999):
        ticket = draw_at(index, 9, "a.b", "parameter_selection") * 3 >> 16
        assert result[index] == ticket


@given(st.integers(0, 2**64 - 1), st.text(max_size=10))
def test_same_seed_and_name_same_choice(seed: int, name: str) -> None:
    models = constants(0, 1, size=200)
    first = select(None, models, resample=0, seed=seed, name=name).tensor
    assert torch.equal(first, select(None, models, resample=0, seed=seed, name=name).tensor)
    other_seed = select(None, models, resample=0, seed=seed ^ 1, name=name).tensor
    other_name = select(None, models, resample=0, seed=seed, name=name + "x").tensor
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, other_name)


def test_resampling_without_base_is_refused() -> None:
    with pytest.raises(ValueError, match="base_model"):
        select(None, constants(1, 2, size=5))


def test_weights_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        select(None, constants(1, 2, size=5), resample=0, weight=(0.0, 0.0))

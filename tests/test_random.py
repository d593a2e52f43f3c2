"""Randomness is a pure function of (seed, tensor, stream, model, draw, scope, element index).

The oracle is `support.philox`: BLAKE2b and Philox4x64-10 in plain Python.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.graph import random
from mergeconf.graph.shares import MOST_SHARES, RESOLUTION, shares_of, threshold_of
from support.philox import draw_at, key_words, philox4x64_10

# Random123, tests/kat_vectors: philox4x64 10: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
]
words = st.integers(0, 2**64 - 1)


def blocks(counter: tuple[int, ...], key: tuple[int, ...], count: int = 1) -> list[int]:
    first = sum(word << (64 * place) for place, word in enumerate(counter))
    found = random.philox(key[0] | key[1] << 64, first).random_raw(4 * count)
    return [int(word) for word in found]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox4x64_10(counter, key) == answer
    assert tuple(blocks(counter, key)) == answer


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_any_block(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert tuple(blocks(counter, key)) == philox4x64_10(counter, key)


def test_blocks_follow_the_counter_over_a_carry() -> None:
    found = blocks((2**64 - 1, 0, 0, 0), (3, 4), count=2)
    assert tuple(found[:4]) == philox4x64_10((2**64 - 1, 0, 0, 0), (3, 4))
    assert tuple(found[4:]) == philox4x64_10((0, 1, 0, 0), (3, 4))


@given(
    st.integers(0, 2**64 - 1),
    st.text(max_size=20),
    st.text(max_size=5),
    st.integers(0, 99),
    st.integers(0, 64),
    st.text(max_size=5),
    st.integers(0, 2**45),
)
def test_draws_are_those_of_the_definition(
    seed: int, name: str, stream: str, model: int, draw: int, scope: str, start: int
) -> None:
    fields = (seed, name, stream, model, draw, scope)
    key = random.stream_key(*fields)
    assert [key & (2**64 - 1), key >> 64] == key_words(*fields)
    out = np.empty(19, np.uint16)
    random.fill_draws(key, start, out)
    assert out.tolist() == [draw_at(start + index, *fields) for index in range(19)]


def test_draws_do_not_change() -> None:
    """Frozen: any change of the stream changes everybody's merged models.

    The numbers were computed by `support.philox`, which shares no code with mergeconf.
    """
    key = random.stream_key(20_240, "model.layers.3.mlp.up_proj.weight", "dare", 2, 1, "inner")
    out = np.empty(8, np.uint16)
    random.fill_draws(key, 1_000_003, out)
    assert (key, out.tolist()) == FROZEN


FROZEN = (
    0x3A8088E47FBDE4A49FD2734933038FCB,
    [24888, 44295, 58522, 14852, 36822, 42117, 20893, 24913],
)


@given(st.integers(0, 200_000), st.integers(0, 70_000))
def test_any_stretch_is_that_of_the_whole(start: int, length: int) -> None:
    whole = np.empty(270_000, np.uint16)
    random.fill_draws(5, 0, whole)
    part = np.full(length + 2, 7, np.uint16)
    random.fill_draws(5, start, part[1:-1])
    assert np.array_equal(part[1:-1], whole[start : start + length])
    assert part[0] == part[-1] == 7  # nothing beside it is touched


def test_keys_differ_in_every_field() -> None:
    values = [(0, 1, 10), ("", "a", "1"), ("", "a", "b"), (0, 1, 11), (0, 1, 12), ("", "a", "1")]
    keys = [random.stream_key(*fields) for fields in itertools.product(*values)]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 3**6


def test_fields_do_not_run_into_each_other() -> None:
    assert random.stream_key(0, "ab", "c", 0, 0) != random.stream_key(0, "a", "bc", 0, 0)
    assert random.stream_key(0, "a", "", 1, 11) != random.stream_key(0, "a", "", 11, 1)


def chi_square(observed: np.ndarray, expected: np.ndarray | float) -> float:
    """Return how many standard deviations chi-square lies from its mean (Wilson, Hilferty)."""
    degrees = observed.size - 1
    value = float((((observed - expected) ** 2) / expected).sum())
    spread = 2 / (9 * degrees)
    return ((value / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5


@pytest.mark.parametrize("name", ["", "model.embed_tokens.weight"])
def test_draws_are_uniform(name: str) -> None:
    """False alarms: 6e-5 a comparison (4 standard deviations); seeds are fixed."""
    draws = np.empty(1 << 22, np.uint16)
    random.fill_draws(random.stream_key(1, name, "s", 0, 0), 0, draws)
    for part in (draws >> 8, draws & 0xFF):
        assert abs(chi_square(np.bincount(part, minlength=256), len(draws) / 256)) < 4
    values = np.bincount(draws, minlength=1 << 16)
    assert abs(chi_square(values, len(draws) / (1 << 16))) < 4
    pairs = (draws[0::2] >> 12).astype(int) * 16 + (draws[1::2] >> 12)  # of neighbours
    assert abs(chi_square(np.bincount(pairs, minlength=256), len(pairs) / 256)) < 4


@given(st.floats(0, 1))
def test_threshold_is_the_nearest_but_never_certain(probability: float) -> None:
    threshold = threshold_of(probability)
    assert abs(threshold - probability * RESOLUTION) <= (
        0.5 if 1 < threshold < RESOLUTION - 1 else 1
    )
    assert (threshold == 0) == (probability == 0)
    assert (threshold == RESOLUTION) == (probability == 1)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=64).filter(any))
def test_shares_are_in_proportion(weights: list[float]) -> None:
    shares = shares_of(tuple(weights))
    assert sum(shares) <= MOST_SHARES
    assert [share > 0 for share in shares] == [weight > 0 for weight in weights]
    for share, weight in zip(shares, weights, strict=True):
        error = abs(share / sum(shares) - weight / sum(weights))
        assert error <= (len(weights) + 1) * 2**-15


@pytest.mark.parametrize("weights", [(1e308, 1.7e308), (5e-324, 1e-323), (2e-310, 1e-310, 0.0)])
def test_shares_of_very_large_and_small_weights(weights: tuple[float, ...]) -> None:
    shares = shares_of(weights)
    largest = max(weights)
    exact = [weight / largest for weight in weights]
    for share, weight in zip(shares, exact, strict=True):
        assert abs(share / sum(shares) - weight / sum(exact)) <= 1e-4


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 0.0), (-1.0, 2.0)])
def test_shares_that_make_no_sense(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights"):
        shares_of(weights)

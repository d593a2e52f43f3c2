"""Parameter values and patterns: gradients, cases, kinds, ranges, globs and layers."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeconf.layers import Place, place_of
from mergeconf.methods import Bounds, Parameter
from mergeconf.recipe.patterns import Matcher, parse_layers, parse_pattern
from mergeconf.recipe.values import (
    Case,
    Cases,
    Constant,
    Evaluated,
    Gradient,
    coerce,
    evaluate,
)
from mergeconf.recipe.words import BadValue, show, show_list


def at_depth(layer, layers):
    return Place("model.layers", layer, "mlp", layers)


def gradient(*values):
    return Gradient(values, "parameters.t", None, (None,) * len(values))


def parameter(kind="float", *, low=None, high=None, choices=(), open_low=False):
    bounds = Bounds(low, high, open_low=open_low)
    return Parameter("p", "p", kind, False, 1, bounds, choices)


# worked by hand from (1 - (s - i)) v[i] + (s - i) v[j], s = t (n - 1)
GRADIENTS = [
    ([0.0, 1.0], 0, 5, 0.0),
    ([0.0, 1.0], 1, 5, 0.25),
    ([0.0, 1.0], 4, 5, 1.0),
    ([0.0, 0.5, 1.0], 1, 5, 0.25),
    ([0.0, 0.5, 0.0], 2, 5, 0.5),
    ([0.0, 0.5, 0.0], 3, 5, 0.25),
    ([1.0, 0.0, 8.0, 2.0], 1, 3, 4.0),  # s = 1.5, between 0 and 8
    ([4.0], 3, 9, 4.0),
    ([0.0, 0.3, 1.0], 1, 9, 0.075),
    ([2.0, 6.0], 0, 0, 2.0),
]


@pytest.mark.parametrize(("values", "layer", "layers", "expected"), GRADIENTS)
def test_gradients_as_worked_by_hand(values, layer, layers, expected):
    assert evaluate(gradient(*values), "n", at_depth(layer, layers)).value == expected


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.integers(1, 200), st.data()
)  # fmt: skip
def test_gradients_interpolate_between_neighbors(values, layers, data):
    layer = data.draw(st.integers(0, layers - 1))
    place = at_depth(layer, layers)
    found = evaluate(gradient(*values), "n", place).value
    scaled = Fraction(place.depth) * (len(values) - 1)
    low = math.floor(scaled)
    high = min(low + 1, len(values) - 1)
    exact = Fraction(values[low]) + (scaled - low) * (
        Fraction(values[high]) - Fraction(values[low])
    )
    assert found == pytest.approx(float(exact), rel=1e-12, abs=1e-11)


def test_tensors_outside_all_layers_take_the_first_value():
    for name in ("lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"):
        assert evaluate(gradient(0.25, 1.0), name, place_of(name, {})).value == 0.25


@pytest.mark.parametrize(
    ("layer", "expected"), [(0, "all"), (1, "all"), (2, "all"), (3, 3), (5, 3), (6, "none")]
)
def test_words_are_picked_not_interpolated(layer, expected):
    assert evaluate(gradient("all", 3, "none"), "n", at_depth(layer, 7)).value == expected


def test_how_a_value_came_about_is_said():
    place = at_depth(2, 9)
    assert evaluate(Constant(0.5, "w", None), "n", place).how == "0.5"
    assert evaluate(Constant("all", "w", None), "n", place).how == "all"
    assert evaluate(gradient(0, 0.5, 1.0), "n", place).how == "gradient [0, 0.5, 1] at depth 0.25"
    assert evaluate(cases((Matcher(filter="mlp"), 1)), "x.mlp", place).how == "filter 'mlp': 1"
    assert evaluate(cases((Matcher(), 1)), "x.mlp", place).how == "all the rest: 1"


def cases(*pairs):
    made = [
        Case(matcher, Constant(value, f"p.{i}", None), f"p.{i}", None)
        for i, (matcher, value) in enumerate(pairs)
    ]
    return Cases(tuple(made), "p", None)


def test_the_first_case_that_fits_decides():
    value = cases(
        (Matcher(filter="self_attn"), 1),
        (Matcher(match=parse_pattern("*.mlp.*"), layers=parse_layers("0-1")), 2),
        (Matcher(filter="mlp"), 3),
    )
    stacks = {"model.layers": 4}

    def found(name):
        evaluated = evaluate(value, name, place_of(name, stacks))
        return evaluated and evaluated.value

    assert found("model.layers.1.self_attn.q.weight") == 1
    assert found("model.layers.1.mlp.up.weight") == 2
    assert found("model.layers.2.mlp.up.weight") == 3
    assert found("model.norm.weight") is None


def test_star_and_no_filter_fit_everything():
    for everything in (Matcher(), Matcher(filter="*"), Matcher(filter="")):
        assert everything.everything
        assert everything.fits("any.thing", Place(None, None, "any"))
    assert not Matcher(filter="a*").fits("abc", Place(None, None, ""))


# kind, options, scalar, expected value or part of the message
KINDS = [
    ("float", {}, 1, 1.0),
    ("float", {}, "1e-3", 0.001),
    ("float", {}, "heavy", "expected a number, found 'heavy'"),
    ("float", {}, True, "expected a number, found true"),
    ("float", {}, math.nan, ".nan is not a finite number"),
    ("float", {}, -math.inf, "-.inf is not a finite number"),
    ("float", {}, "nan", "not a finite number"),
    ("float", {}, 10**400, "not a finite number"),
    ("float", {"low": 0, "high": 1}, 1, 1.0),
    ("float", {"low": 0, "high": 1}, 1.5, "1.5 is out of range"),
    ("float", {"low": 0, "high": 1}, -0.3, "-0.3 is out of range"),
    ("float", {"low": 0, "open_low": True}, 0, "0 is out of range"),
    ("int", {}, 10, 10),
    ("int", {}, 10.0, 10),
    ("int", {}, 2**60 + 1, 2**60 + 1),
    ("int", {}, 10.5, "expected a whole number, found 10.5"),
    ("int", {"choices": ("all",)}, "all", "=all"),
    ("int", {"choices": ("all",)}, "al", "expected a whole number or all, found 'al'"),
    ("int", {"low": 0}, -1, "-1 is out of range"),
    ("bool", {}, True, True),
    ("bool", {}, "yes", True),
    ("bool", {}, "On", True),
    ("bool", {}, "no", False),
    ("bool", {}, "off", False),
    ("bool", {}, 0, False),
    ("bool", {}, 1.0, True),
    ("bool", {}, 2, "expected true or false, found 2"),
    ("bool", {}, "maybe", "expected true or false, found 'maybe'"),
    ("choice", {"choices": ("row", "tensor")}, "row", "=row"),
    ("choice", {"choices": ("row", "tensor")}, "rows", "expected one of row, tensor, found 'rows'"),
    ("choice", {"choices": ("row", "tensor")}, 3, "expected one of row, tensor, found 3"),
]


@pytest.mark.parametrize(("kind", "options", "scalar", "expected"), KINDS)
def test_scalars_suit_the_kind_of_the_parameter(kind, options, scalar, expected):
    wanted = parameter(kind, **options)
    if isinstance(expected, str) and not expected.startswith("="):
        with pytest.raises(BadValue) as caught:
            coerce(scalar, wanted)
        assert expected in str(caught.value)
        if "out of range" in expected:
            assert str(wanted.bounds) in caught.value.hint
    else:
        found = coerce(scalar, wanted)
        expected = expected[1:] if isinstance(expected, str) else expected
        assert found == expected
        assert type(found) is type(expected)


def test_near_words_are_suggested():
    with pytest.raises(BadValue) as caught:
        coerce("al", parameter("int", choices=("all",)))
    assert caught.value.hint == "did you mean 'all'?"


def test_long_lists_and_numbers_are_shortened():
    assert show_list(tuple(range(20))) == "[0, 1, 2, 3, 4, 5, ..., 17, 18, 19]"
    assert show(10**4000) == "a number of 13288 bits"
    assert len(show("x" * 500)) < 70


# pattern, name, fits
NAMES = [
    ("model.embed_tokens.*", "model.embed_tokens.weight", True),
    ("model.embed_tokens", "model.embed_tokens.weight", False),
    ("*.self_attn.*", "model.layers.3.self_attn.q_proj.weight", True),
    ("*attn*", "model.layers.3.self_attn.q_proj.weight", True),
    ("model.layers.?.mlp.*", "model.layers.3.mlp.up.weight", True),
    ("model.layers.?.mlp.*", "model.layers.13.mlp.up.weight", False),
    ("model.layers.[0-3].*", "model.layers.2.mlp.up.weight", True),
    ("model.layers.[!0-3].*", "model.layers.2.mlp.up.weight", False),
    ("LM_HEAD.*", "lm_head.weight", False),
    ("model.norm.weight", "modelxnorm.weight", False),
    (r"re:.*\.(input|post_attention)_layernorm\.weight", "a.0.input_layernorm.weight", True),
    (r"re:input_layernorm", "a.0.input_layernorm.weight", False),
    (r"re:lm_head\.weight|x", "lm_head.weight", True),
]


@pytest.mark.parametrize(("pattern", "name", "fits"), NAMES)
def test_patterns_fit_whole_names(pattern, name, fits):
    assert parse_pattern(pattern).fits(name) is fits
    assert Matcher(match=parse_pattern(pattern)).fits(name, Place(None, None, "")) is fits


@pytest.mark.parametrize("pattern", ["re:(", "re:[", "re:*x", "", "re:", 3, None, ["*"]])
def test_bad_patterns_are_refused(pattern):
    with pytest.raises(BadValue):
        parse_pattern(pattern)


# written, layers of the stack, layers meant
LAYERS = [
    ("0-7", 32, range(8)),
    (5, 32, [5]),
    ([0, 5, 31], 32, [0, 5, 31]),
    (-1, 32, [31]),
    ([-1, -2], 10, [8, 9]),
    ("0-2,12", 32, [0, 1, 2, 12]),
    (["0-2", 12, "20-"], 22, [0, 1, 2, 12, 20, 21]),
    ("8-", 10, [8, 9]),
    ("-4-", 10, [6, 7, 8, 9]),
    ("-4--2", 10, [6, 7, 8]),
    ("2--3", 10, [2, 3, 4, 5, 6, 7]),
    ("0-100", 4, range(4)),
    (" 1 , 3 - 4 ", 10, [1, 3, 4]),
    ("7", 4, []),
]


@pytest.mark.parametrize(("written", "layers", "meant"), LAYERS)
def test_layer_sets(written, layers, meant):
    found = parse_layers(written)
    assert [n for n in range(layers) if found.contains(n, layers)] == list(meant)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 9)), min_size=1), st.integers(1, 12))
def test_layer_sets_are_unions_of_their_ranges(pairs, layers):
    parts = [
        (first, first + more if first >= 0 else min(first + more, -1)) for first, more in pairs
    ]
    text = ",".join(f"{first}-{last}" for first, last in parts)
    meant = {(n + layers if n < 0 else n) for first, last in parts for n in range(first, last + 1)}
    found = parse_layers(text)
    assert {n for n in range(layers) if found.contains(n, layers)} == meant & set(range(layers))


@pytest.mark.parametrize("written", ["7-0", "-1--4", [], "", "a", "1.5", 1.5, True, None, "1,,2",
                                     [[1]], "9" * 30, "0-9999999", {"a": 1}])  # fmt: skip
def test_bad_layers_are_refused(written):
    with pytest.raises(BadValue) as caught:
        parse_layers(written)
    assert str(caught.value)


def test_numbers_beyond_a_stack_are_found():
    assert parse_layers("0-7,-9").beyond(8) == (-9,)
    assert parse_layers("0-8").beyond(8) == (8,)
    assert parse_layers("8-").beyond(8) == (8,)
    assert parse_layers("-8-7").beyond(8) == ()


def test_layers_need_a_tensor_in_a_stack():
    matcher = Matcher(layers=parse_layers("0-"))
    assert not matcher.fits("lm_head.weight", place_of("lm_head.weight", {}))
    assert matcher.fits("a.b.0.c", place_of("a.b.0.c", {"a.b": 1}))


def test_negative_layers_count_in_the_own_stack_of_a_tensor():
    stacks = {"encoder.layers": 4, "decoder.layers": 8}
    last = Matcher(layers=parse_layers(-1))
    fitting = [
        name
        for stack, count in stacks.items()
        for name in (f"{stack}.{i}.w.weight" for i in range(count))
        if last.fits(name, place_of(name, stacks))
    ]
    assert fitting == ["encoder.layers.3.w.weight", "decoder.layers.7.w.weight"]


def test_evaluated_defaults_have_no_place():
    assert Evaluated(1.0, "", None, "default").location is None

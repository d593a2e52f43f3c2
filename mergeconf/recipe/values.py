"""What value has a parameter for one tensor? A constant, a gradient over the depth, or cases.

Values hold what the recipe says and where it says so; `convert` makes them fit one parameter of
one method. Knows nothing of rules, models or precedence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mergeconf.errors import Location, did_you_mean
from mergeconf.layers import Place
from mergeconf.methods import Parameter
from mergeconf.recipe.patterns import Matcher
from mergeconf.recipe.words import BadValue, Scalar, show, show_list

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for every tensor."""

    value: Scalar
    where: str
    """Key path in the recipe."""
    location: Location | None


@dataclass(frozen=True, slots=True)
class Gradient:
    """Values over the depth: numbers are interpolated, words and truth values are picked."""

    values: tuple[Scalar, ...]
    where: str
    location: Location | None
    locations: tuple[Location | None, ...]
    """Place of each value."""


@dataclass(frozen=True, slots=True)
class Case:
    """A value for the tensors that a matcher fits."""

    matcher: Matcher
    value: Constant | Gradient
    where: str
    location: Location | None


@dataclass(frozen=True, slots=True)
class Cases:
    """Cases in order of writing: the first that fits a tensor decides."""

    cases: tuple[Case, ...]
    where: str
    location: Location | None


Value = Constant | Gradient | Cases


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The value of one parameter for one tensor, and where it came from."""

    value: Scalar | None
    """The value; None only where that is a method's default."""
    where: str
    """Key path in the recipe, or empty for a default."""
    location: Location | None
    """Place in the recipe, or None for a default."""
    how: str
    """In words: `0.3`, `gradient [0, 0.5, 1] at depth 0.25`, `default`."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One scalar of a value, with its place."""

    value: Scalar
    where: str
    location: Location | None


def evaluate(
    value: Value, name: str, place: Place, source: str | None = None
) -> Evaluated | None:  # fmt: skip
    """Return the value for a tensor, or None where no case fits it.

    `source` is its name in the model that the value is for, where that may differ.

    A gradient v of n values at depth t is mergekit's: with s = t (n - 1), i = floor(s),
    j = min(i + 1, n - 1), it is (1 - (s - i)) v[i] + (s - i) v[j] in float64.
    """
    match value:
        case Constant():
            word = isinstance(value.value, str)
            how = str(value.value) if word else show(value.value)
            return Evaluated(value.value, value.where, value.location, how)
        case Gradient():
            how = f"gradient {show_list(value.values)} at depth {place.depth:.4g}"
            return Evaluated(_at(value.values, place.depth), value.where, value.location, how)
        case Cases():
            for case in value.cases:
                if case.matcher.fits(name, place, source):
                    found = evaluate(case.value, name, place)
                    return found and replace(found, how=f"{case.matcher}: {found.how}")
            return None


def _at(values: tuple[Scalar, ...], depth: float) -> Scalar:
    scaled = depth * (len(values) - 1)
    low = math.floor(scaled)
    high = min(low + 1, len(values) - 1)
    first, second = values[low], values[high]
    if any(isinstance(value, (str, bool)) for value in values):
        return first
    assert not isinstance(first, str) and not isinstance(second, str)
    part = scaled - low
    return (1 - part) * first + part * second


def leaves(value: Value) -> Iterator[Leaf]:
    """Yield every scalar of a value."""
    match value:
        case Constant():
            yield Leaf(value.value, value.where, value.location)
        case Gradient():
            for index, scalar in enumerate(value.values):
                yield Leaf(scalar, f"{value.where}.{index}", value.locations[index])
        case Cases():
            for case in value.cases:
                yield from leaves(case.value)


def gradients(value: Value) -> Iterator[Gradient]:
    """Yield every gradient of a value."""
    match value:
        case Gradient():
            yield value
        case Cases():
            for case in value.cases:
                yield from gradients(case.value)


def convert(value: Value, parameter: Parameter) -> Value:
    """Return the value with every scalar as the parameter takes it.

    Raises:
        BadValue: a scalar does not suit the parameter.
    """
    match value:
        case Constant():
            return replace(value, value=coerce(value.value, parameter))
        case Gradient():
            scalars = tuple(coerce(scalar, parameter) for scalar in value.values)
            return replace(value, values=scalars)
        case Cases():
            cases = []
            for case in value.cases:
                inner = convert(case.value, parameter)
                assert not isinstance(inner, Cases)
                cases.append(replace(case, value=inner))
            return replace(value, cases=tuple(cases))


def coerce(scalar: Scalar, parameter: Parameter) -> Scalar:
    """Return a scalar as the parameter takes it: number, whole number, truth value or word.

    Raises:
        BadValue: the scalar is of another kind, not finite, or out of the parameter's range.
    """
    if isinstance(scalar, str) and scalar in parameter.choices:
        return scalar
    match parameter.kind:
        case "bool":
            return _truth(scalar)
        case "choice":
            hint = did_you_mean(scalar, parameter.choices) if isinstance(scalar, str) else ""
            raise BadValue(
                f"expected one of {', '.join(parameter.choices)}, found {show(scalar)}", hint
            )
        case "int" | "float":
            number = _number(scalar, parameter)
            if not parameter.bounds.contains(number):
                raise BadValue(
                    f"{show(scalar)} is out of range", f"'{parameter.name}' is {parameter.bounds}"
                )
            return number


def _truth(scalar: Scalar) -> bool:
    word = _WORDS.get(str(scalar).lower()) if not isinstance(scalar, float) else None
    if isinstance(scalar, float) and scalar in (0.0, 1.0):
        word = bool(scalar)
    if word is None:
        raise BadValue(f"expected true or false, found {show(scalar)}")
    return word


def _number(scalar: Scalar, parameter: Parameter) -> float | int:
    words = f" or {' or '.join(parameter.choices)}" if parameter.choices else ""
    kind = "a whole number" if parameter.kind == "int" else "a number"
    if isinstance(scalar, bool):
        raise BadValue(f"expected {kind}{words}, found {show(scalar)}", "write 1 or 0")
    try:
        number = float(scalar)
    except OverflowError:
        number = math.inf
    except ValueError:
        hint = did_you_mean(str(scalar), parameter.choices) if parameter.choices else ""
        raise BadValue(f"expected {kind}{words}, found {show(scalar)}", hint) from None
    if not math.isfinite(number):
        raise BadValue(f"{show(scalar)} is not a finite number")
    if parameter.kind == "float":
        return number
    if not number.is_integer():
        raise BadValue(f"expected a whole number{words}, found {show(scalar)}")
    return scalar if isinstance(scalar, int) else int(number)

"""Which tensors does a pattern of the recipe fit? By name, and by layer.

Knows nothing of rules, parameters or YAML: a bad pattern is a `BadValue` without a place.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mergeconf.layers import Place
from mergeconf.recipe.words import BadValue, describe, show

_RANGE = re.compile(r"\s*(?P<first>-?\d+)\s*(?P<dash>-\s*(?P<last>-?\d+)?)?\s*", re.ASCII)
_MOST_LAYERS = 100_000


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern for the whole name of a tensor."""

    text: str
    """As written: a glob, or `re:` and a regular expression."""
    regex: re.Pattern[str]

    def fits(self, name: str) -> bool:
        """Tell whether the pattern fits the whole name, upper and lower case told apart."""
        return self.regex.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class LayerSet:
    """A set of layers; negative numbers count from the end of the stack a tensor lies in."""

    text: str
    """As written: `0-7,-1`."""
    ranges: tuple[tuple[int, int | None], ...]
    """First and last layer of each part, both included; None for an open end."""

    def contains(self, layer: int, layers: int) -> bool:
        """Tell whether a layer of a stack with that many layers is in the set."""
        for first, last in self.ranges:
            start = first + layers if first < 0 else first
            end = layers - 1 if last is None else last + layers if last < 0 else last
            if start <= layer <= end:
                return True
        return False

    def beyond(self, layers: int) -> tuple[int, ...]:
        """Return the numbers written that no stack of at most that many layers has."""
        written = [end for part in self.ranges for end in part if end is not None]
        return tuple(dict.fromkeys(end for end in written if not -layers <= end < layers))


@dataclass(frozen=True, slots=True)
class Matcher:
    """Which tensors a rule or a case is for: all conditions that are given have to hold."""

    match: NamePattern | None = None
    layers: LayerSet | None = None
    filter: str | None = None
    """mergekit's condition: a substring of the name; `*` fits every name. Of a parameter that each
    model has for itself, the name that the tensor has in that model."""

    @property
    def everything(self) -> bool:
        """Whether no condition narrows it."""
        return self.match is None and self.layers is None and self.filter in (None, "", "*")

    def fits(self, name: str, place: Place, source: str | None = None) -> bool:
        """Tell whether a tensor of that name, at that place, is meant.

        Args:
            name: Its name in the output.
            place: Where it stands in the output.
            source: Its name in the model, where that may differ.
        """
        if self.filter not in (None, "*") and str(self.filter) not in (source or name):
            return False
        if self.layers is not None and (
            place.layer is None or not self.layers.contains(place.layer, place.layers)
        ):
            return False
        return self.match is None or self.match.fits(name)

    def __str__(self) -> str:
        parts = [f"match {self.match.text!r}"] if self.match else []
        parts += [f"layers {self.layers.text}"] if self.layers else []
        parts += [f"filter {self.filter!r}"] if self.filter is not None else []
        return " and ".join(parts) or "all the rest"


def parse_pattern(text: object) -> NamePattern:
    """Return a name pattern: a glob for the whole name, or `re:` and a regular expression.

    Raises:
        BadValue: it is no text, it is empty, or the regular expression is not well formed.
    """
    if not isinstance(text, str):
        hint = 'for example "*.self_attn.*"'
        raise BadValue(f"expected a pattern for tensor names, found {describe(text)}", hint)
    if not text.removeprefix("re:"):
        raise BadValue("the pattern is empty and fits no tensor", "'*' fits every tensor")
    if not text.startswith("re:"):
        return NamePattern(text, re.compile(fnmatch.translate(text)))
    try:
        return NamePattern(text, re.compile(text[3:]))
    except (re.error, OverflowError, RecursionError) as error:
        raise BadValue(
            f"not a regular expression: {error}", "without 're:' the pattern is a glob"
        ) from None


def parse_layers(spec: object) -> LayerSet:
    """Return a layer set from a number, text such as `0-7,12` or `8-`, or a list of these.

    Raises:
        BadValue: it is none of these, it is empty, or a range runs backwards.
    """
    items = spec if isinstance(spec, (list, tuple)) else [spec]
    texts = [piece for item in items for piece in _pieces(item)]
    if not texts:
        raise BadValue("the list of layers is empty", "for example 0-7, [0, 5, 31] or -1")
    return LayerSet(",".join(text.strip() for text in texts), tuple(map(_range, texts)))


def _pieces(item: object) -> Iterable[str]:
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise BadValue(
            f"expected layers, found {describe(item)}", "for example 0-7, [0, 5, 31] or -1"
        )
    return str(item).split(",")


def _range(text: str) -> tuple[int, int | None]:
    found = _RANGE.fullmatch(text)
    if found is None or any(len(digits) > 7 for digits in re.findall(r"\d+", text)):
        raise BadValue(f"{show(text)} names no layers", "for example 0-7, [0, 5, 31] or -1")
    first = int(found["first"])
    if found["dash"] is None:
        last: int | None = first
    else:
        last = None if found["last"] is None else int(found["last"])
    if max(abs(first), abs(last or 0)) > _MOST_LAYERS:
        raise BadValue(f"{show(text)} is beyond {_MOST_LAYERS:,} layers")
    if last is not None and (first < 0) == (last < 0) and last < first:
        raise BadValue(f"the range {text.strip()} runs backwards", f"write {last}-{first}")
    return first, last

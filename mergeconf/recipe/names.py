"""Do a recipe's patterns fit the tensors that there are? Asked of names and places alone.

mergekit ignores a filter that fits nothing; here a pattern that does nothing is an error.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mergeconf.errors import Location, Problem
from mergeconf.layers import Place
from mergeconf.recipe.model import KeyPath, Recipe, Rule
from mergeconf.recipe.patterns import LayerSet, Matcher, parse_pattern
from mergeconf.recipe.values import Case, Cases, Value

Places = Mapping[str, Place]


def check_names(
    recipe: Recipe, places: Places, scopes: Mapping[str, int | None] | None = None
) -> tuple[Problem, ...]:
    """Return what is wrong with the patterns of rules and cases, given all output tensors.

    `scopes` is the index of the scope that each tensor belongs to: the first where left out.

    Errors: a rule or a case that fits no tensor, a rule that comes after others which decide all
    its tensors, a layer that no stack has. Warnings: `case-never-used`, `substring-filter`.
    """
    decided = _decided(recipe, places)
    problems: list[Problem] = []
    for rule in recipe.rules:
        problems += _check_rule(rule, decided, places)
    wide = {**_in_sources(recipe, places, scopes or {}), **places}
    for values, names in _scopes(recipe, decided, places, wide):
        for value in values.values():
            if isinstance(value, Cases) and names:
                problems += _check_cases(value, names)
    for values, own in _parts(recipe, places, scopes or {}):
        for value in values.values():
            if isinstance(value, Cases) and own:
                # in one slice of several, a case for embeddings or heads may rightly do nothing
                there = [c for c in value.cases if _fits_any(c.matcher, own)]
                problems += _check_cases(replace(value, cases=tuple(there)), own)
                gone = [c for c in value.cases if not _fits_any(c.matcher, wide)]
                problems += _check_cases(replace(value, cases=tuple(gone)), places)
    return tuple(dict.fromkeys(problems))


def _decided(recipe: Recipe, places: Places) -> dict[int, Places]:
    """Return the tensors that each rule decides."""
    decided: dict[int, dict[str, Place]] = {rule.index: {} for rule in recipe.rules}
    for name, place in places.items():
        for rule in recipe.rules:
            if rule.matcher.fits(name, place):
                decided[rule.index][name] = place
                break
    return dict(decided)


def _scopes(
    recipe: Recipe, decided: Mapping[int, Places], places: Places, wide: Places
) -> Iterator[tuple[Mapping[str, Value], Places]]:
    """Yield every mapping of parameters of recipe, models and rules, with its tensors."""
    yield recipe.parameters, wide
    for scope in recipe.scopes:
        if not scope.path:
            for entry in scope.entries:
                yield entry.parameters, places
    for rule in recipe.rules:
        yield rule.parameters, decided[rule.index]


def _in_sources(
    recipe: Recipe, places: Places, scopes: Mapping[str, int | None]
) -> dict[str, Place]:
    """Return the places of slices' layers by the names in their sources, which filters look at."""
    found = {}
    for name, place in places.items():
        index = scopes.get(name)
        if place.span is None or index is None:
            continue
        rest = name.removeprefix(f"{place.stack}.{place.layer}.")
        for entry in recipe.scopes[index].entries:
            if entry.layer_range is not None:
                layer = entry.layer_range[0] + place.span[0]
                found[f"{place.stack}.{layer}.{rest}"] = place
    return found


def _parts(
    recipe: Recipe, places: Places, scopes: Mapping[str, int | None]
) -> Iterator[tuple[Mapping[str, Value], Places]]:
    """Yield every mapping of parameters of slices and modules, with its tensors."""
    shared: dict[KeyPath, tuple[Mapping[str, Value], dict[str, Place]]] = {}
    for scope in recipe.scopes if recipe.assembled else ():
        own = {n: place for n, place in places.items() if scopes.get(n, 0) == scope.index}
        own = {**_in_sources(recipe, own, scopes), **own}
        for path, values in scope.parameters:
            shared.setdefault(path, (values, {}))[1].update(own)
        for entry in scope.entries:
            yield entry.parameters, own
    yield from shared.values()


def _check_rule(rule: Rule, decided: Mapping[int, Places], places: Places) -> Iterator[Problem]:
    where = f"rules.{rule.index}"
    if not decided[rule.index]:
        if not _fits_any(rule.matcher, places):
            yield _fits_none(rule.matcher, where, rule.location, places)
            return
        earlier = ", ".join(
            f"rules.{index}"
            for index, names in decided.items()
            if any(rule.matcher.fits(name, place) for name, place in names.items())
        )
        yield Problem(
            "every tensor that it fits is decided by an earlier rule",
            where,
            rule.location,
            f"put it before {earlier}",
        )
    yield from _check_layers(rule.matcher.layers, where, rule.location, places)


def _check_cases(value: Cases, scope: Places) -> Iterator[Problem]:
    open_names = dict(scope)
    for case in value.cases:
        matcher = case.matcher
        fitting = [name for name, place in scope.items() if matcher.fits(name, place)]
        if not fitting and not matcher.everything:
            yield _fits_none(matcher, case.where, case.location, scope)
            continue
        if not any(name in open_names for name in fitting):
            yield Problem(
                "earlier cases decide every tensor that it fits",
                case.where,
                case.location,
                "the first case that fits wins: put it before them",
                "warning",
                "case-never-used",
            )
        for name in fitting:
            open_names.pop(name, None)
        yield from _check_layers(matcher.layers, case.where, case.location, scope)
        yield from _check_substring(case, fitting)


def _check_substring(case: Case, fitting: list[str]) -> Iterator[Problem]:
    """Warn where a filter cuts a number in two: `layers.1` also fits `layers.10`."""
    text = case.matcher.filter or ""
    cut = next((found for name in fitting for found in _cut_numbers(text, name)), None)
    if cut is not None:
        yield Problem(
            f"filter '{text}' is a substring, so it also fits {cut}",
            case.where,
            case.location,
            f"match: \"*{text}.*\" fits the number alone" if text[-1:].isdigit() else "",
            "warning",
            "substring-filter",
        )  # fmt: skip


def _cut_numbers(text: str, name: str) -> Iterator[str]:
    start = name.find(text) if text else -1
    while start >= 0:
        end = start + len(text)
        after = name[end : end + 1].isdigit() and text[-1].isdigit()
        before = start > 0 and name[start - 1].isdigit() and text[0].isdigit()
        if after or before:
            yield name
        start = name.find(text, start + 1)


def _check_layers(
    layers: LayerSet | None, where: str, location: Location | None, places: Places
) -> Iterator[Problem]:
    most = max((place.layers for place in places.values()), default=0)
    beyond = layers.beyond(most) if layers is not None and most else ()
    if beyond:
        yield Problem(
            f"there is no layer {beyond[0]}: the longest stack has {most} layers",
            where,
            location,
            f"layers are numbered from 0 to {most - 1}, or from -{most} to -1",
        )


def _fits_any(matcher: Matcher, places: Places) -> bool:
    return any(matcher.fits(name, place) for name, place in places.items())


def _fits_none(
    matcher: Matcher, where: str, location: Location | None, places: Places
) -> Problem:  # fmt: skip
    count = f"{len(places):,} tensors" if len(places) != 1 else "1 tensor"
    message = f"{matcher} fits none of {count}"
    return Problem(message, where, location, _hint(matcher, places))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A change to a matcher that may be what was meant."""

    matcher: Matcher
    hint: str


def _hint(matcher: Matcher, places: Places) -> str:
    for attempt in _attempts(matcher):
        if _fits_any(attempt.matcher, places):
            return attempt.hint
    example = next((name for name, place in places.items() if place.layer is not None), None)
    example = example or next(iter(places), None)
    return f"names look like {example}" if example else ""


def _attempts(matcher: Matcher) -> Iterator[_Attempt]:
    pattern = matcher.match
    if pattern is not None and not pattern.text.startswith("re:"):
        wider = parse_pattern(f"*{pattern.text.strip('*')}*")
        hint = f'a pattern fits the whole name: match: "{wider.text}"'
        yield _Attempt(Matcher(wider, matcher.layers), hint)
        folded = parse_pattern(f"re:(?i:{fnmatch.translate(pattern.text)})")
        yield _Attempt(Matcher(folded, matcher.layers), "upper and lower case differ")
    elif pattern is not None:
        wider = parse_pattern(f"re:.*(?:{pattern.text[3:]}).*")
        yield _Attempt(Matcher(wider, matcher.layers), "the expression has to fit the whole name")
    if pattern is not None and matcher.layers is not None:
        yield _Attempt(Matcher(pattern), "the pattern alone fits, but in no such layer")
    if matcher.filter and "*" in matcher.filter:
        glob = parse_pattern(f"*{matcher.filter.strip('*')}*")
        hint = f'a filter is a plain substring; a pattern is written match: "{glob.text}"'
        yield _Attempt(Matcher(glob), hint)

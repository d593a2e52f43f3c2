"""What is done with one tensor? Which rule decides it, and every parameter's value with its origin.

Precedence, strongest first: a matching rule, the model (of a slice: its source), the slice, the
module, the recipe, the method's default. Names, places and layers are those of the output; a
gradient runs over the layers of the slice; only mergekit's `filter`, of a parameter that each model
has for itself, looks at the name in that model, as in mergekit. Knows nothing of tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeconf.errors import Location, Problem, RecipeError
from mergeconf.layers import Place
from mergeconf.methods import Method, Parameter, all_methods
from mergeconf.recipe.model import ModelRef, Recipe, Rule, Scope
from mergeconf.recipe.suits import is_own, takes_base_alone, unsuited
from mergeconf.recipe.values import Constant, Evaluated, Gradient, Value, convert, evaluate


@dataclass(frozen=True, slots=True)
class Resolved:
    """One parameter of the method for one tensor."""

    name: str
    """Name in the recipe."""
    argument: str
    """Name of the method's keyword argument."""
    value: Any
    """The value; for a per-model parameter a tuple, one value a merged model."""
    origins: tuple[Evaluated, ...] = field(compare=False)
    """Where the value came from: one, or one a merged model."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one tensor. Equal and of equal hash where the same is done.

    Exactly one of `method`, `take` and `drop` is set.
    """

    method: str | None
    take: ModelRef | None
    drop: bool
    base: ModelRef | None
    """The base, where the method uses one and the recipe has one."""
    models: tuple[ModelRef, ...]
    """The models merged, in the recipe's order, without the base where the method uses one."""
    parameters: tuple[Resolved, ...]
    """Every parameter of the method, in the method's order."""
    rule: int | None = field(compare=False)
    """Index of the rule that decided, or None for the recipe itself."""
    location: Location | None = field(compare=False)
    """Place of that rule, or of the recipe's `merge_method` or `take`."""
    scope: str = field(default="", compare=False)
    """Key path of the slice or module whose models are merged: `slices.0`; empty for `models`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The method's keyword arguments."""
        return {resolved.argument: resolved.value for resolved in self.parameters}


class Decider:
    """Decides tensor after tensor for one recipe; what does not depend on the tensor is kept."""

    def __init__(self, recipe: Recipe, methods: Mapping[str, Method] | None = None) -> None:
        self._recipe = recipe
        self._methods = all_methods() if methods is None else methods
        self._branches: dict[tuple[int | None, int | None], _Branch] = {}

    def decide(self, name: str, place: Place, scope: int | None = 0) -> Decision:
        """Return what is done with an output tensor.

        Args:
            name: Its name in the output.
            place: Where it stands in the output.
            scope: Index of the scope that it belongs to; None where no module names it.

        Raises:
            RecipeError: a parameter that the method needs has no value for this tensor, or the
                method does not suit the scope's models.
        """
        rule = self.rule_of(name, place)
        branch = self._branches.get((rule, scope))
        if branch is None:
            branch = _Branch(
                self._recipe,
                self._methods,
                None if rule is None else self._recipe.rules[rule],
                _NOWHERE if scope is None else self._recipe.scopes[scope],
            )
            self._branches[rule, scope] = branch
        return branch.decide(name, place)

    def rule_of(self, name: str, place: Place) -> int | None:
        """Return the index of the first rule that fits a tensor, or None."""
        for rule in self._recipe.rules:
            if rule.matcher.fits(name, place):
                return rule.index
        return None


_NOWHERE = Scope(-1, ("modules",), (), None)


def decide(
    recipe: Recipe,
    name: str,
    place: Place,
    scope: int | None = 0,
    *,
    methods: Mapping[str, Method] | None = None,
) -> Decision:
    """Return what is done with one tensor, as a `Decider` does; for many tensors make one."""
    return Decider(recipe, methods).decide(name, place, scope)


class _Branch:
    """What one rule, or the recipe where no rule fits, does with its tensors of one scope."""

    def __init__(
        self, recipe: Recipe, methods: Mapping[str, Method], rule: Rule | None, scope: Scope
    ) -> None:
        owner = recipe if rule is None else rule
        self.index = None if rule is None else rule.index
        key = "take" if recipe.method is None else "merge_method"
        location = rule.location if rule is not None else recipe.locations.get(key)
        method = None if owner.method is None else methods[owner.method]
        merged = () if method is None else scope.merged(method)
        self._merged = merged
        self._problem = _unsuited(method, scope, self.index, location)
        take = owner.take
        if method is not None and takes_base_alone(method, scope):
            method, take = None, scope.base_model
        self._frame = Decision(
            method=None if method is None else method.name,
            take=take,
            drop=rule is not None and rule.drop,
            base=None if method is None or method.base == "unused" else scope.base_model,
            models=tuple(entry.model for entry in merged),
            parameters=(),
            rule=self.index,
            location=location,
            scope=".".join(map(str, scope.path)),
        )
        self._slots = (
            tuple(
                (parameter, _chains(recipe, rule, scope, method, parameter))
                for parameter in method.parameters.values()
            )
            if method is not None and scope is not _NOWHERE
            else ()
        )
        self._kept: dict[tuple[int, ...], Decision] = {}

    def decide(self, name: str, place: Place) -> Decision:
        if self._problem is not None:
            raise RecipeError(self._problem)
        found = []
        key = []
        for _, chains in self._slots:
            for chain in chains:
                evaluated = chain.at(name, place)
                found.append(evaluated)
                key.append(id(evaluated))  # chains keep what they return, so ids stay valid
        kept = self._kept.get(tuple(key))
        if kept is None:
            kept = self._make(name, found)
            self._kept[tuple(key)] = kept
        return kept

    def _make(self, name: str, found: list[Evaluated | None]) -> Decision:
        parameters = []
        problems = []
        position = 0
        for parameter, chains in self._slots:
            part = found[position : position + len(chains)]
            position += len(chains)
            origins = tuple(origin for origin in part if origin is not None)
            if len(origins) < len(part):
                problems.append(self._no_value(name, parameter, part))
                continue
            value = tuple(o.value for o in origins) if parameter.per_model else origins[0].value
            parameters.append(Resolved(parameter.name, parameter.argument, value, origins))
        if problems:
            raise RecipeError(problems)
        frame = self._frame
        return Decision(
            frame.method, frame.take, frame.drop, frame.base, frame.models, tuple(parameters),
            frame.rule, frame.location, frame.scope,
        )  # fmt: skip

    def _no_value(self, name: str, parameter: Parameter, part: list[Evaluated | None]) -> Problem:
        models = (
            " for " + ", ".join(
                str(entry.model)
                for entry, origin in zip(self._merged, part, strict=True)
                if origin is None
            )
            if parameter.per_model
            else ""
        )  # fmt: skip
        prefix = "" if self.index is None else f"rules.{self.index}."
        return Problem(
            f"'{self._frame.method}' needs a value{models}, and no case fits tensor {name}",
            where=f"{prefix}parameters.{parameter.name}",
            location=self._frame.location,
            hint="end the list with a case that has no filter",
        )


class _Chain:
    """Values of one parameter for one model, strongest first, and the default behind them."""

    __slots__ = ("_cases", "_default", "_first", "_fixed", "_kept", "_values")

    def __init__(
        self, values: tuple[Value, ...], default: Evaluated | None, first: int | None
    ) -> None:
        self._values = values
        self._first = first
        self._default = default
        self._kept: dict[object, Evaluated | None] = {}
        # a constant before all else is the same for every tensor
        self._fixed = not values or isinstance(values[0], Constant)
        self._cases = not self._fixed and not isinstance(values[0], Gradient)

    def at(self, name: str, place: Place) -> Evaluated | None:
        key: object = None
        source = None
        if self._cases:
            source = self._source(name, place)
            key = self._which(name, place, source)
        elif not self._fixed:
            key = place.depth
        if key not in self._kept:
            self._kept[key] = self._evaluate(name, place, source)
        return self._kept[key]

    def _source(self, name: str, place: Place) -> str | None:
        """Return the name that a slice's layer has in its source."""
        if self._first is None or place.span is None:
            return None
        start = f"{place.stack}.{place.layer}."
        return f"{place.stack}.{self._first + place.span[0]}.{name.removeprefix(start)}"

    def _which(self, name: str, place: Place, source: str | None) -> object:
        """Name what decides the value: which value of the chain, which case, at which depth."""
        for index, value in enumerate(self._values):
            if isinstance(value, Constant):
                return index, 0, 0.0
            if isinstance(value, Gradient):
                return index, 0, place.depth
            for number, case in enumerate(value.cases):
                if case.matcher.fits(name, place, source):
                    gradient = isinstance(case.value, Gradient)
                    return index, number, place.depth if gradient else 0.0
        return None

    def _evaluate(self, name: str, place: Place, source: str | None) -> Evaluated | None:
        for value in self._values:
            found = evaluate(value, name, place, source)
            if found is not None:
                return found
        return self._default


def _unsuited(
    method: Method | None, scope: Scope, rule: int | None, location: Location | None
) -> Problem | None:
    """Return why a method cannot merge the models of a scope, or None where it can."""
    if method is None:
        return None
    if scope is _NOWHERE:
        return None  # said by the plan, once for all tensors
    problem = unsuited(method, scope)
    if problem is None:
        return None
    where = ".".join(map(str, problem.path))
    by = "" if rule is None else f" (rules.{rule})"
    place = scope.location if rule is None else location
    return Problem(f"{problem.message}{by}", where, place, problem.hint)


def _chains(
    recipe: Recipe,
    rule: Rule | None,
    scope: Scope,
    method: Method,
    parameter: Parameter,
) -> tuple[_Chain, ...]:
    default = None if parameter.required else Evaluated(parameter.default, "", None, "default")
    of_rule = None if rule is None else rule.parameters.get(parameter.name)
    shared = [values.get(parameter.name) for _, values in scope.parameters]
    shared.append(recipe.parameters.get(parameter.name))
    of_models: list[tuple[Value | None, int | None]] = [(None, None)]
    if is_own(method, parameter):
        of_models = [
            (entry.parameters.get(parameter.name), (entry.layer_range or (None,))[0])
            for entry in scope.merged(method)
        ]
    return tuple(
        _Chain(
            tuple(
                convert(value, parameter)
                for value in (of_rule, of_model, *shared)
                if value is not None
            ),
            default,
            first,
        )
        for of_model, first in of_models
    )

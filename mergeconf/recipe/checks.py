"""Do a recipe's methods, models and parameters go together? Asked without looking at models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergeconf.errors import listed
from mergeconf.methods import Method, Parameter
from mergeconf.recipe.collect import Collector
from mergeconf.recipe.model import ModelEntry, Recipe, Scope
from mergeconf.recipe.scopes import is_whole
from mergeconf.recipe.suits import is_own, unsuited
from mergeconf.recipe.values import Gradient, Value, coerce, gradients, leaves
from mergeconf.recipe.words import BadValue
from mergeconf.recipe.yaml_source import Path


@dataclass(frozen=True, slots=True)
class Use:
    """A method that a recipe uses, and where it says so."""

    method: Method
    path: Path
    """Path of the rule, or empty for the recipe itself."""
    parameters: Mapping[str, Value]
    """Parameters of the rule, none for the recipe itself."""


def uses_of(recipe: Recipe, methods: Mapping[str, Method]) -> tuple[Use, ...]:
    """Return every use of a known method: the recipe's, then the rules'."""
    found = []
    if recipe.method is not None and recipe.method in methods:
        found.append(Use(methods[recipe.method], (), {}))
    for rule in recipe.rules:
        if rule.method is not None and rule.method in methods:
            found.append(Use(methods[rule.method], ("rules", rule.index), rule.parameters))
    return tuple(found)


def check_models(recipe: Recipe, uses: tuple[Use, ...], collector: Collector) -> None:
    """Note a missing base, too few or too many models, and models listed twice.

    Of slices and modules, which rules may decide in part, only what is sure: the rest is said when
    tensors are decided.
    """
    sure = uses if not recipe.assembled else uses if not recipe.rules else ()
    for scope in recipe.scopes:
        whole = is_whole(scope, collector) and "models" not in collector.meant
        for use in sure:
            problem = unsuited(use.method, scope)
            if problem is None:
                continue
            if problem.path == ("base_model",):
                if collector.given("base_model") or "base_model" in collector.meant:
                    continue
            elif not whole:
                continue
            collector.error(problem.path, problem.message, problem.hint, key=problem.key)
        if not scope.sliced:
            _check_twice(scope, collector)
    _check_idle_base(recipe, uses, collector)


def _check_twice(scope: Scope, collector: Collector) -> None:
    first: dict[str, ModelEntry] = {}
    for entry in scope.entries:
        before = first.setdefault(entry.model.key, entry)
        if before is not entry:
            collector.warn(
                "duplicate-model",
                entry.path,
                f"'{entry.model}' is listed before, as models.{before.index}, and counts twice",
                "mergekit counts it once",
            )


def _check_idle_base(recipe: Recipe, uses: tuple[Use, ...], collector: Collector) -> None:
    base = recipe.base_model
    if base is None or not uses or any(use.method.base != "unused" for use in uses):
        return
    taken = [recipe.take, *(rule.take for rule in recipe.rules)]
    known = {entry.model.key for entry in recipe.models}
    known |= {model.key for model in taken if model is not None}
    if base.key not in known:
        names = " and ".join(dict.fromkeys(f"'{use.method.name}'" for use in uses))
        collector.warn(
            "base-not-merged",
            ("base_model",),
            f"{names} merges listed models only: the base gives configuration and tokenizer",
            "list it under 'models' if it is to be merged, as mergekit does",
        )


def check_parameters(
    recipe: Recipe,
    uses: tuple[Use, ...],
    methods: Mapping[str, Method],
    all_known: bool,
    collector: Collector,
) -> None:
    """Note parameters that no method has, in the wrong place, out of range, or missing.

    `all_known` tells whether all methods that the recipe names are known, so that a parameter
    that none of them has is a mistake.
    """
    own = tuple(use.method for use in uses)
    for given in _given(recipe):
        for name, value in given.values.items():
            check = _Check(given.scope, own, methods, all_known, collector)
            check.parameter((*given.path, name), name, value, given.entry)
    for use in uses:
        for name, value in use.parameters.items():
            check = _Check(None, (use.method,), methods, True, collector)
            check.parameter((*use.path, "parameters", name), name, value, None)
        for parameter in use.method.parameters.values():
            if parameter.required and parameter.name not in collector.meant:
                _check_given(recipe, use, parameter, collector)


@dataclass(frozen=True, slots=True)
class _Given:
    """A mapping of parameters, and where it stands."""

    path: Path
    values: Mapping[str, Value]
    entry: ModelEntry | None = None
    """The model that they are set for, if they are for one."""
    scope: Scope | None = None


def _given(recipe: Recipe) -> Iterator[_Given]:
    yield _Given(("parameters",), recipe.parameters)
    seen = set()
    for scope in recipe.scopes:
        for path, values in scope.parameters:
            if path not in seen:  # those of a module belong to each of its slices
                seen.add(path)
                yield _Given(path, values)
        for entry in scope.entries:
            yield _Given((*entry.path, "parameters"), entry.parameters, entry, scope)


def _check_given(recipe: Recipe, use: Use, parameter: Parameter, collector: Collector) -> None:
    name = parameter.name
    if name in use.parameters or name in recipe.parameters:
        return
    for scope in recipe.scopes:
        if any(name in values for _, values in scope.parameters):
            continue
        path = (*(use.path or scope.path), "parameters", name)
        if not is_own(use.method, parameter):
            collector.error(path, f"missing, and '{use.method.name}' needs it")
            continue
        without = [
            str(entry.model) for entry in scope.merged(use.method) if name not in entry.parameters
        ]
        if without:
            collector.error(
                path,
                f"missing for {listed(without)}, and '{use.method.name}' needs it",
                "give it under each model, or for all under 'parameters'",
            )


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks of one parameter against the methods that can use it."""

    scope: Scope | None
    """That of the model which the parameter is set for, if it is for one."""
    users: tuple[Method, ...]
    methods: Mapping[str, Method]
    all_known: bool
    collector: Collector

    def parameter(self, path: Path, name: str, value: Value, entry: ModelEntry | None) -> None:
        """Check one parameter; `entry` is the model that it is set for, if it is for one."""
        having = [method for method in self.users if name in method.parameters]
        if not having:
            self._unused(path, name, entry)
            return
        if entry is not None:
            if self._is_base(entry):
                self._warn_base(path, entry)
                return
            having = [method for method in having if is_own(method, method.parameters[name])]
            if not having:
                self.collector.error(
                    path,
                    f"'{name}' is one value for all models",
                    "move it to the recipe's own 'parameters'",
                    key=True,
                )
                return
        for method in having:
            self._value(value, method.parameters[name])

    def _unused(self, path: Path, name: str, entry: ModelEntry | None) -> None:
        reasons = [method.ignored[name] for method in self.users if name in method.ignored]
        if reasons:
            message = f"has no effect: {reasons[0]}"
            self.collector.warn("ignored-parameter", path, message, "leave it out")
            return
        others = [method.name for method in self.methods.values() if name in method.parameters]
        if others and entry is not None and self._is_base(entry):
            self._warn_base(path, entry)
        elif self.all_known:
            self._unknown(path, name, others)
        elif not others:  # whatever method is meant, none has it
            every = {known for method in self.methods.values() for known in method.parameters}
            self.collector.unknown_key(path, sorted(every))

    def _unknown(self, path: Path, name: str, others: list[str]) -> None:
        names = list(dict.fromkeys(method.name for method in self.users))
        here = " and ".join(f"'{method}'" for method in names)
        valid = {known for method in self.users for known in method.parameters}
        if not names:
            self.collector.error(path, "no merge method here takes parameters", key=True)
        elif others:
            takes = f"takes {listed(sorted(valid))}" if valid else "takes no parameters"
            hint = f"{here} {takes}; '{name}' belongs to {listed(others, 4)}"
            self.collector.error(path, f"{here} has no parameter '{name}'", hint, key=True)
        elif not valid:
            self.collector.error(path, f"{here} takes no parameters", key=True)
        else:
            self.collector.unknown_key(path, sorted(valid))

    def _is_base(self, entry: ModelEntry) -> bool:
        """Tell whether every method in use has the model as its base."""
        assert self.scope is not None
        return bool(self.users) and all(
            entry not in self.scope.merged(method) for method in self.users
        )

    def _warn_base(self, path: Path, entry: ModelEntry) -> None:
        self.collector.warn(
            "base-parameters", path, f"has no effect: '{entry.model}' is the base", "leave it out"
        )

    def _value(self, value: Value, parameter: Parameter) -> None:
        for leaf in leaves(value):
            try:
                coerce(leaf.value, parameter)
            except BadValue as error:
                self.collector.error_at(leaf.where, leaf.location, str(error), error.hint)
        if parameter.kind == "int":
            for gradient in gradients(value):
                self._no_gradient(gradient, parameter)

    def _no_gradient(self, gradient: Gradient, parameter: Parameter) -> None:
        self.collector.error_at(
            gradient.where,
            gradient.location,
            f"'{parameter.name}' is a whole number and cannot be a gradient",
            "write a list of layers and value instead",
        )

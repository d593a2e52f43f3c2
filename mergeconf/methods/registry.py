"""What is a merge method, which are there, and which parameters does each take?

A method is one function in one file of this folder, marked with `@merge_method`. Its positional
arguments are the tensors, its keyword-only arguments are the recipe's parameters: annotation,
bounds and default are read from the signature, and everything else (recipe schema, `mergeconf
methods`, README table, shared tests) is derived from it. A trailing underscore lets a parameter
have a Python keyword for a name (`lambda_`). This module knows nothing of tensors, tiles or files.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

BaseUse = Literal["required", "optional", "unused"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a numeric parameter."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    """Whether `low` itself is outside the range."""
    open_high: bool = False
    """Whether `high` itself is outside the range."""

    def contains(self, value: float) -> bool:
        """Tell whether a number lies in the range; NaN never does."""
        if value != value:
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or not (
            value > self.high or (self.open_high and value == self.high)
        )

    def __str__(self) -> str:
        """Return the range in words: `between 0 and 1`, `at least 0`, `more than 0`."""
        if self.low is not None and self.high is not None:
            ends = f"between {self.low:g} and {self.high:g}"
            left_out = [
                f"{end:g}"
                for end, is_open in ((self.low, self.open_low), (self.high, self.open_high))
                if is_open
            ]
            return ends + (f", {' and '.join(left_out)} excluded" if left_out else "")
        if self.low is not None:
            return f"{'more than' if self.open_low else 'at least'} {self.low:g}"
        if self.high is not None:
            return f"{'less than' if self.open_high else 'at most'} {self.high:g}"
        return "any finite number"


@dataclass(frozen=True, slots=True)
class PerModelMark:
    """Marks a parameter that has a value for each non-base model."""


PerModel = Annotated[tuple[float, ...], PerModelMark()]
"""Annotation of a parameter that the method receives as a tuple, one number a non-base model.

Its default in the signature is a tuple of one: the value of each model that has none.
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method, as a recipe may set it."""

    name: str
    """Name in the recipe."""
    argument: str
    """Name of the function's keyword argument; `name` with a `_` where that is a keyword."""
    kind: Literal["float", "int", "bool", "choice"]
    per_model: bool
    """Whether each model has a value of its own."""
    default: Any
    """Value where a recipe sets none (of one model, for a per-model parameter)."""
    bounds: Bounds
    choices: tuple[str, ...] = ()
    """Words allowed, for `choice`; for `int`, words allowed beside the numbers (`all`)."""
    doc: str = ""
    required: bool = False
    """Whether a recipe has to set it."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method: its function and what it asks of a recipe."""

    name: str
    function: Callable[..., Any] = field(compare=False)
    base: BaseUse
    """Whether the base model is the first tensor argument (`required`), may be (`optional`), or
    is no argument at all (`unused`)."""
    min_models: int
    """Fewest models beside the base."""
    max_models: int | None
    """Most models beside the base, or None."""
    copies: bool
    """Whether it takes stored values as they are and copies them bit for bit; the others get
    float32 tensors."""
    parameters: Mapping[str, Parameter] = field(compare=False)
    source: str
    """Where the formula is published (an arXiv id), or empty."""
    ignored: Mapping[str, str] = field(compare=False)
    """Parameters that other tools' recipes set in vain, and why each has no effect: warnings."""
    laws: frozenset[str] = frozenset()
    """Laws that the tests check on random inputs; see tests/test_method_laws.py."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def description(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.function) or ""


_methods: dict[str, Method] = {}

INT8_MASK = {"int8_mask": "masks are always one byte an element here"}


def merge_method(
    *,
    base: BaseUse = "required",
    models: tuple[int, int | None] = (1, None),
    copies: bool = False,
    source: str = "",
    ignored: Mapping[str, str] | None = None,
    laws: set[str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function below as the merge method of its own name."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _methods[function.__name__] = Method(
            name=function.__name__,
            function=function,
            base=base,
            min_models=models[0],
            max_models=models[1],
            copies=copies,
            parameters=_parameters_of(function),
            source=source,
            ignored={**INT8_MASK, **(ignored or {})},
            laws=frozenset(laws or ()),
        )
        return function

    return register


@cache
def all_methods() -> Mapping[str, Method]:
    """Return every merge method by name, in the order of their names."""
    package = importlib.import_module(__package__ or "mergeconf.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_") and module.name != "registry":
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_methods.items()))


def _parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY:
            continue
        parameter = _parameter(argument, hints[argument.name])
        found[parameter.name] = parameter
    return found


def _default_of(default: Any) -> Any:
    return default[0] if isinstance(default, tuple) else default


def _parameter(argument: inspect.Parameter, hint: Any) -> Parameter:
    marks: list[Any] = []
    while typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        marks = [*more, *marks]
    per_model = any(isinstance(mark, PerModelMark) for mark in marks)
    if per_model:
        hint = typing.get_args(hint)[0]
    choices: tuple[str, ...] = ()
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            choices = tuple(str(value) for value in typing.get_args(part))
            hint = next((a for a in typing.get_args(hint) if a in (int, float)), str)
    kinds: dict[Any, Literal["float", "int", "bool", "choice"]] = {
        bool: "bool", int: "int", float: "float", str: "choice",
    }  # fmt: skip
    required = argument.default is argument.empty
    return Parameter(
        name=argument.name.rstrip("_"),
        argument=argument.name,
        kind=kinds[hint],
        per_model=per_model,
        default=None if required else _default_of(argument.default),
        bounds=next((mark for mark in marks if isinstance(mark, Bounds)), Bounds()),
        choices=choices,
        doc=next((mark for mark in marks if isinstance(mark, str)), ""),
        required=required,
    )

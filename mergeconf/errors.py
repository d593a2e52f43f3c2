"""What can go wrong, and how it is said.

A `Problem` is one fact that stands in the way, with its place and a hint. Every exception that
leaves a public function of mergeconf is a `MergeconfError` and carries all problems found, not
only the first. This module knows nothing of recipes, tensors or files.

    MergeconfError
    ├── RecipeError        the recipe is not well formed, or asks for what does not exist
    ├── CheckpointError    a model's files are missing, damaged or not understood
    ├── PlanError          recipe and models are each sound, but do not fit together
    ├── MemoryBudgetError  the plan cannot run within the memory that was allowed
    ├── OutputError        the output cannot be written where it was asked for
    ├── ExecutionError     a run failed while it was under way
    └── Interrupted        the user stopped the run; it can be continued
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a text file."""

    file: str
    """Path of the file as the user gave it."""
    line: int
    """Line, counted from 1."""
    column: int
    """Column, counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is, and what may help."""

    message: str
    """The fact: lower case, what was found and what was expected, no full stop."""
    where: str = ""
    """The recipe key it concerns (`models.1.parameters.weight`), a tensor or a file; or empty."""
    location: Location | None = None
    """Place in the recipe, where the problem has one."""
    hint: str = ""
    """What to do about it, or the nearest valid name."""
    severity: Severity = "error"
    code: str = ""
    """A short stable name for a warning, by which it can be silenced; empty for errors."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.hint:
            text += f"; {self.hint}"
        if self.location:
            text += f" ({self.location})"
        return text


class MergeconfError(Exception):
    """Root of all errors that mergeconf raises on purpose."""

    def __init__(self, problems: Problem | str | Iterable[Problem], *, hint: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, hint=hint)
        if isinstance(problems, Problem):
            problems = (problems,)
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[MergeconfError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class RecipeError(MergeconfError):
    """The recipe is not well formed, or asks for what does not exist."""


class CheckpointError(MergeconfError):
    """A model's files are missing, damaged or not understood."""


class PlanError(MergeconfError):
    """Recipe and models are each sound, but do not fit together."""


class MemoryBudgetError(MergeconfError):
    """The plan cannot run within the memory that was allowed."""


class OutputError(MergeconfError):
    """The output cannot be written where it was asked for."""


class ExecutionError(MergeconfError):
    """A run failed while it was under way."""


class LockError(MergeconfError):
    """A lock is damaged or edited, or what it speaks of is no longer the same."""


class Interrupted(MergeconfError):
    """The user stopped the run; what was finished is kept and the run can be continued."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a hint naming the nearest valid name, or the valid names where none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {listed(names)}" if names else ""


def listed(names: Sequence[str], most: int = 12) -> str:
    """Join names with commas, and say how many were left out past `most`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"

"""Where do the problems of one recipe gather, each with its key path and its place in the text?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mergeconf.errors import Location, Problem, RecipeError, did_you_mean
from mergeconf.recipe.words import BadValue
from mergeconf.recipe.yaml_source import Path, Source

if TYPE_CHECKING:
    from mergeconf.recipe.merges import Merges


class Collector:
    """Problems of one recipe, in order of finding."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.prefix: Path = ()
        """Where the data stands in the recipe that it is a part of."""
        self.merges: Merges
        """The merges that models can name; set before models are read."""
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.meant: set[str] = set()
        """Names that misspelled keys seem to mean: nobody has to be told that they are missing."""

    def child(self, path: Path) -> Collector:
        """Return a collector for a part of the data, whose problems come to this one."""
        child = Collector(self.source.at(path))
        child.prefix = (*self.prefix, *path)
        child.errors, child.warnings = self.errors, self.warnings
        return child

    def where(self, path: Path) -> str:
        """Return a key path as messages write it: `models.1.parameters.weight`."""
        return dotted((*self.prefix, *path))

    def adopt(self, problems: Iterable[Problem], path: Path) -> None:
        """Note the problems of another file, which a path names."""
        for problem in problems:
            if problem.location is None and problem.severity == "error":
                location = self.source.locate(path)
                problem = replace(problem, location=location)
            self._add(self.errors if problem.severity == "error" else self.warnings, problem)

    def error(
        self, path: Path, message: str, hint: str = "", *, key: bool = False, code: str = ""
    ) -> None:
        """Note an error at the value of a path, or at its key."""
        location = self.source.locate(path, key=key)
        self.error_at(self.where(path), location, message, hint, code)

    def error_at(
        self, where: str, location: Location | None, message: str, hint: str = "", code: str = ""
    ) -> None:
        """Note an error whose key path and place are at hand."""
        self._add(self.errors, Problem(message, where, location, hint, code=code))

    def unknown_key(self, path: Path, valid: Iterable[str], hint: str = "") -> None:
        """Note a key that is none of the valid ones, and which of them may be meant."""
        names = list(valid)
        suggestion = did_you_mean(str(path[-1]), names)
        self.meant.update(name for name in names if suggestion == f"did you mean '{name}'?")
        if ":" in str(path[-1]):
            suggestion = "write a space after the colon"
        self.error(path, "unknown key", hint or suggestion, key=True)

    def bad(self, path: Path, error: BadValue) -> None:
        """Note a value that cannot be used."""
        self.error(path, str(error), error.hint)

    def warn(self, code: str, path: Path, message: str, hint: str = "") -> None:
        """Note something harmless at the key of a path."""
        location = self.source.locate(path, key=True)
        problem = Problem(message, self.where(path), location, hint, severity="warning", code=code)
        self._add(self.warnings, problem)

    def given(self, key: str) -> bool:
        """Tell whether the recipe has a top-level key with a value."""
        data = self.source.data
        return isinstance(data, dict) and data.get(key) is not None

    def raise_errors(self) -> None:
        """Raise every error that was noted, in the order of the text, if there is one."""
        if self.errors:
            raise RecipeError(sorted(self.errors, key=self._position))

    def _position(self, problem: Problem) -> tuple[bool, str, int, int]:
        """Return what problems are sorted by: those of this file first."""
        at = problem.location
        return (at.file != self.source.file, at.file, at.line, at.column) if at else (
            False, "", 0, 0
        )  # fmt: skip

    @staticmethod
    def _add(problems: list[Problem], problem: Problem) -> None:
        if problem not in problems:
            problems.append(problem)


def dotted(path: Path) -> str:
    """Return a key path as messages write it: `models.1.parameters.weight`."""
    return ".".join(str(part) for part in path)

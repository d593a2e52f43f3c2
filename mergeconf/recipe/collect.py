"""Where do the problems of one recipe gather, each with its key path and its place in the text?"""

from __future__ import annotations

from collections.abc import Iterable

from mergeconf.errors import Location, Problem, RecipeError, did_you_mean
from mergeconf.recipe.words import BadValue
from mergeconf.recipe.yaml_source import Path, Source


class Collector:
    """Problems of one recipe, in order of finding."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.meant: set[str] = set()
        """Names that misspelled keys seem to mean: nobody has to be told that they are missing."""

    def error(
        self, path: Path, message: str, hint: str = "", *, key: bool = False, code: str = ""
    ) -> None:
        """Note an error at the value of a path, or at its key."""
        location = self.source.locate(path, key=key)
        self.error_at(dotted(path), location, message, hint, code)

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
        problem = Problem(message, dotted(path), location, hint, severity="warning", code=code)
        self._add(self.warnings, problem)

    def given(self, key: str) -> bool:
        """Tell whether the recipe has a top-level key with a value."""
        data = self.source.data
        return isinstance(data, dict) and data.get(key) is not None

    def raise_errors(self) -> None:
        """Raise every error that was noted, in the order of the text, if there is one."""
        if self.errors:
            raise RecipeError(sorted(self.errors, key=_position))

    @staticmethod
    def _add(problems: list[Problem], problem: Problem) -> None:
        if problem not in problems:
            problems.append(problem)


def dotted(path: Path) -> str:
    """Return a key path as messages write it: `models.1.parameters.weight`."""
    return ".".join(str(part) for part in path)


def _position(problem: Problem) -> tuple[int, int]:
    at = problem.location
    return (at.line, at.column) if at else (0, 0)

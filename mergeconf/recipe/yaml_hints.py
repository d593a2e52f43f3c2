"""What is most likely wrong with text that is no YAML, and what may help? Words only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from yaml.error import MarkedYAMLError

_NO_SPACE = re.compile(r"^\s*(- )?\s*[A-Za-z_][\w-]*:[^\s:/\\]")
_OPEN_TEXT = re.compile(r":\s+[^\s\"'{\[|>&*#][^#]*: ")


def plain_message(error: MarkedYAMLError) -> str:
    """Return what the YAML parser found, in words for people who do not know its terms."""
    problem = error.problem or "not well-formed YAML"
    for fragment, words in _MESSAGES:
        if fragment in problem or fragment in (error.context or ""):
            return words
    return f"not well-formed YAML: {problem}"


_MESSAGES = (
    ("nested deeper", "nested deeper than any recipe"),
    ("cannot start any token", "this character cannot start a value"),
    ("quoted scalar", "a quoted text is not closed, or holds an unknown escape"),
    ("found undefined alias", "an alias (*) names no anchor (&)"),
    ("scanning an alias", "* starts an alias in YAML, and this is none"),
    ("scanning an anchor", "& starts an anchor in YAML, and this is none"),
    ("duplicate anchor", "an anchor (&) of this name was given before"),
    ("mapping values are not allowed", "a second ': ' in one line, or wrong indentation"),
    ("could not find expected ':'", "a line without ': ' among keys"),
    ("flow sequence", "a list that opens with [ is not well formed or not closed"),
    ("flow mapping", "a mapping that opens with { is not well formed or not closed"),
    ("did not find expected '-' indicator", "wrong indentation, or a list item without '-'"),
    ("<block end>", "wrong indentation"),
    ("expected the node content", "a value is missing or starts with a special character"),
    ("undefined tag handle", "! starts a tag in YAML, and this is none"),
)


def colon_without_space(lines: Sequence[str], at: int) -> tuple[int, int] | None:
    """Return line and column, from 0, of the colon of a `key:value` at a line or before it."""
    for number in (at - 1, at):
        found = _NO_SPACE.match(lines[number]) if 0 <= number < len(lines) else None
        if found:
            return number, found.end() - 2
    return None


def hint_for(error: MarkedYAMLError, lines: Sequence[str], at: int) -> str:
    """Return what may help; `at` is the line of the problem, counted from 0."""
    near = lines[max(0, at - 1) : at + 1]
    line = lines[at] if at < len(lines) else ""
    said = f"{error.context} {error.problem}"
    if any("\t" in text[: len(text) - len(text.lstrip())] for text in [*near, line]):
        return "indent with spaces, not with tabs"
    if "quoted scalar" in said:
        if "escape" in said:
            return "in double quotes write \\\\ for each backslash, or use single quotes"
        return "close the text with the same kind of quote"
    if "alias" in said or "anchor" in said or "tag" in said:
        return "put a text that starts with *, & or ! in quotes"
    if "cannot start any token" in said or _OPEN_TEXT.search(line):
        return "put the text in quotes"
    if "flow" in said:
        return "close every [ and {"
    if "nested" in said:
        return "is this the right file?"
    return "items of one mapping or list start in the same column"

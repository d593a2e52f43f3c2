"""What does the YAML text say, and where does it say it? Plain data, and a place for every part.

Scalars follow the YAML 1.2 core schema: only `true` and `false` are truth values, `no` is text,
`1e-3` is a number. Keys are always text, as written. Knows nothing of what a recipe contains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.scanner import Scanner

from mergeconf.errors import Location, Problem, RecipeError
from mergeconf.recipe.yaml_hints import colon_without_space, hint_for, plain_message
from mergeconf.recipe.yaml_scalars import SCALARS, TAG, Resolver

MOST_BYTES = 1_000_000
"""Largest text accepted, in bytes of UTF-8."""
DEEPEST = 50
"""Most collections inside each other."""
MOST_NODES = 100_000
"""Most keys and values after aliases are written out."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Plain data read from YAML, with places."""

    file: str
    """Path as the user gave it, for messages."""
    text: str
    """The text unchanged."""
    data: Any
    """Mappings with text keys, lists, text, numbers, truth values and None."""
    keys: Mapping[Path, Location] = field(repr=False)
    """Place of the key of every item of a mapping."""
    values: Mapping[Path, Location] = field(repr=False)
    """Place of every value."""

    def locate(self, path: Path, *, key: bool = False) -> Location | None:
        """Return the place of a value or its key, or of the nearest part around it that exists."""
        for end in range(len(path), -1, -1):
            # what is missing lies in what is around it: point to the key of that
            found = self.keys.get(path[:end]) if key or end < len(path) else None
            found = found or self.values.get(path[:end])
            if found:
                return found
        return None

    def is_anchored(self, path: Path) -> bool:
        """Tell whether a value begins with an anchor (`&name`), for aliases to repeat."""
        found = self.values.get(path)
        if found is None:
            return False
        line = re.split(r"\r\n|\r|\n", self.text.removeprefix("\ufeff"))[found.line - 1]
        return line[found.column - 1 : found.column] == "&"

    def at(self, path: Path) -> Source:
        """Return a part of the data as if it were all, with its places."""
        data = self.data
        for part in path:
            data = data[part]
        size = len(path)
        places = (
            {key[size:]: found for key, found in table.items() if key[:size] == path}
            for table in (self.keys, self.values)
        )
        return Source(self.file, self.text, data, *places)


class _TooDeep(MarkedYAMLError):
    """Collections inside each other beyond all use."""


class _Loader(Reader, Scanner, Parser, Composer, Resolver):
    """Text to nodes; nothing is constructed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooDeep(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        try:
            return Composer.compose_node(self, parent, index)
        finally:
            self._depth -= 1


def read_documents(raw: bytes | str, file: str) -> list[Source]:
    """Return the data of each document of a YAML text, and the place of every part.

    Blank documents are left out; where all are, one is returned, without data.

    Raises:
        RecipeError: the text is no YAML, is not UTF-8, has a key twice, or is beyond all use.
    """
    text = _decode(raw, file)
    found = []
    problems: list[Problem] = []
    count = 0
    nodes: list[Node | None] = [*_compose(text.removeprefix("\ufeff"), file)]
    for node in nodes or [None]:
        builder = _Builder(file, count)
        data = builder.build(node, ()) if node is not None else None
        problems.extend(builder.problems)
        count = builder.count
        builder.values.setdefault((), Location(file, 1, 1))
        found.append(Source(file, text, data, builder.keys, builder.values))
    if problems:
        raise RecipeError(problems)
    return found


def _decode(given: bytes | str, file: str) -> str:
    raw = given
    if isinstance(given, str):
        try:
            raw = given.encode()
        except UnicodeEncodeError as error:
            raise RecipeError(
                Problem(
                    "the text holds half of a surrogate pair",
                    location=_spot(given, error.start, file),
                )
            ) from None
    assert isinstance(raw, bytes)
    if len(raw) > MOST_BYTES:
        raise RecipeError(
            Problem(
                f"{len(raw):,} bytes is too large for a recipe, the most is {MOST_BYTES:,}",
                location=Location(file, 1, 1),
                hint="is this the right file?",
            )
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise RecipeError(
            Problem(
                f"the file is not UTF-8: byte 0x{raw[error.start]:02x} cannot be read",
                location=_spot(before, len(before), file),
                hint=f"save it as UTF-8{', it looks like UTF-16' if utf16 else ''}",
            )
        ) from None


def _spot(text: str, index: int, file: str) -> Location:
    lines = re.split(r"\r\n|\r|\n", text[:index])
    return Location(file, len(lines), len(lines[-1]) + 1)


def _compose(text: str, file: str) -> list[Node]:
    """Return the root nodes of all documents that are not blank."""
    try:
        loader: Any = _Loader(text)
        loader.get_event()  # the start of the stream
        documents: list[Node] = []
        while not loader.check_event(yaml.StreamEndEvent):
            node = loader.compose_document()
            if node is not None and not _is_blank(node):
                documents.append(node)
    except ReaderError as error:
        at = _spot(text, error.position, file)
        raise RecipeError(
            Problem(
                f"character U+{ord(text[error.position]):04X} is not allowed in YAML", location=at
            )
        ) from None
    except MarkedYAMLError as error:
        raise RecipeError(_syntax_problem(error, text, file)) from None
    return documents


def _is_blank(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "" and node.style is None


def _syntax_problem(error: MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = error.context or ""
    if error.context_mark and any(word in context for word in ("quoted", "alias", "anchor")):
        mark = error.context_mark  # where it starts, not where the parser gave up
    lines = text.splitlines()
    said = error.problem or ""
    if mark is not None and ("not allowed" in said or "expected ':'" in said):
        spot = colon_without_space(lines, mark.line)
        if spot is not None:
            message, hint = "no space after the colon of a key", "write a space after the colon"
            return Problem(message, location=Location(file, spot[0] + 1, spot[1] + 1), hint=hint)
    return Problem(
        plain_message(error),
        location=_location(mark, file) if mark else Location(file, 1, 1),
        hint=hint_for(error, lines, mark.line if mark else 0),
    )


def _location(mark: Mark, file: str) -> Location:
    return Location(file, mark.line + 1, mark.column + 1)


class _Builder:
    """Turns nodes into plain data, noting places and problems on the way."""

    def __init__(self, file: str, count: int = 0) -> None:
        self.file = file
        self.count = count
        """Keys and values so far."""
        self.keys: dict[Path, Location] = {}
        self.values: dict[Path, Location] = {}
        self.problems: list[Problem] = []
        self._around: list[Node] = []

    def build(self, node: Node, path: Path) -> Any:
        self.count += 1
        self.values[path] = _location(node.start_mark, self.file)
        if self.count > MOST_NODES:
            return self._stop(node, path, f"more than {MOST_NODES:,} keys and values")
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if any(node is outer for outer in self._around):
            return self._stop(node, path, "an alias refers to what it lies in")
        if len(self._around) >= DEEPEST:
            return self._stop(node, path, f"nested deeper than {DEEPEST} levels")
        if node.tag not in (TAG + "map", TAG + "seq"):
            return self._refuse_tag(node, path)
        self._around.append(node)
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, MappingNode)
            return self._mapping(node, path)
        finally:
            self._around.pop()

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        first: dict[str, ScalarNode] = {}
        for key, _ in node.value:
            name = self._key(key, path)
            if name is None or _is_merge(key):
                continue
            if name in first:
                before = _location(first[name].start_mark, self.file)
                self._problem(key, (*path, name), f"duplicate key; first given at {before}")
            else:
                first[name] = key
        return {
            name: self._item(key, value, (*path, name))
            for name, (key, value) in self._pairs(node, path).items()
        }

    def _item(self, key: ScalarNode, value: Node, path: Path) -> Any:
        self.keys[path] = _location(key.start_mark, self.file)
        return self.build(value, path)

    def _pairs(self, node: MappingNode, path: Path) -> dict[str, tuple[ScalarNode, Node]]:
        """Return the items of a mapping: its own before those of its merge keys (`<<`)."""
        own: dict[str, tuple[ScalarNode, Node]] = {}
        merged: dict[str, tuple[ScalarNode, Node]] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if not _is_merge(key):
                own.setdefault(key.value, (key, value))
                continue
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                for name, pair in self._merge_source(source, path).items():
                    merged.setdefault(name, pair)
        return {**own, **{name: pair for name, pair in merged.items() if name not in own}}

    def _merge_source(self, node: Node, path: Path) -> dict[str, tuple[ScalarNode, Node]]:
        self.count += 1
        if not isinstance(node, MappingNode):
            self._problem(node, (*path, "<<"), "a merge key takes a mapping, or a list of these")
            return {}
        if any(node is outer for outer in self._around) or self.count > MOST_NODES:
            self._stop(node, (*path, "<<"), "merge keys refer to each other without end")
            return {}
        self._around.append(node)
        try:
            return self._pairs(node, path) if len(self._around) <= DEEPEST else {}
        finally:
            self._around.pop()

    def _key(self, node: Node, path: Path) -> str | None:
        if isinstance(node, ScalarNode):
            return str(node.value)
        what = "mapping" if isinstance(node, MappingNode) else "list"
        self._problem(
            node, path, f"a key has to be text, found a {what}", "put a text with { or [ in quotes"
        )
        return None

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        make = SCALARS.get(node.tag)
        if make is None:
            return self._refuse_tag(node, path)
        try:
            return make(node.value)
        except (ValueError, KeyError, OverflowError):
            what = {"int": "a whole number", "float": "a number", "bool": "true or false"}
            kind = node.tag.removeprefix(TAG)
            shown = node.value if len(node.value) <= 40 else node.value[:37] + "..."
            self._problem(node, path, f"'{shown}' cannot be read as {what.get(kind, kind)}")
            return None

    def _refuse_tag(self, node: Node, path: Path) -> None:
        tag = node.tag.replace(TAG, "!!")
        self._problem(node, path, f"the tag {tag} is not allowed", "leave it out")

    def _stop(self, node: Node, path: Path, message: str) -> None:
        if not any(problem.code == "beyond-use" for problem in self.problems):
            self._problem(node, path, message, code="beyond-use")

    def _problem(
        self, node: Node, path: Path, message: str, hint: str = "", code: str = ""
    ) -> None:
        where = ".".join(str(part) for part in path)
        at = _location(node.start_mark, self.file)
        self.problems.append(Problem(message, where, at, hint, code=code))


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and key.value == "<<" and key.style is None

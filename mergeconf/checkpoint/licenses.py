"""Under which license is a model, as far as its own files say so plainly?

The front matter of README.md (the model card) comes first, then a license file whose title is a
well-known one. What is not recognized is unknown: nothing here guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

_MOST_BYTES = 1 << 16
"""Read at the start of a file, in bytes."""
_CARD = "README.md"
_TITLE = 1_000
"""Characters at the start of a license in which its title stands."""
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "COPYING.txt")

_TITLES: tuple[tuple[str, str], ...] = (
    (r"gnu affero general public license", "agpl-3.0"),
    (r"gnu lesser general public license", "lgpl-3.0"),
    (r"gnu general public license version ([23])", r"gpl-\1.0"),
    (r"apache license,? version 2\.0", "apache-2.0"),
    (r"mit license|permission is hereby granted, free of charge", "mit"),
    (r"llama 2 community license", "llama2"),
    (r"llama 3 community license", "llama3"),
    (r"llama (3\.[123]|4) community license", r"llama\1"),
    (r"gemma terms of use", "gemma"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"mistral ai research license", "mrl"),
    (r"mistral ai non-production license", "mnpl"),
)
"""What the start of a license's text holds, in lower case, and the name that model cards use."""


@dataclass(frozen=True, slots=True)
class License:
    """A license that a model's files name."""

    name: str
    """As model cards write it: apache-2.0, llama3.1, cc-by-nc-4.0."""
    file: str
    """The file that says so."""


def find_license(folder: Path) -> License | None:
    """Return the license of the model in a folder, or None where its files do not say plainly."""
    card = folder / _CARD
    named = _of_card(_start(card))
    if named is not None:
        return License(named, _CARD)
    for name in _FILES:
        found = _of_text(_start(folder / name))
        if found is not None:
            return License(found, name)
    return None


def normalized(name: str) -> str:
    """Return a license's name as it is compared: `Apache 2.0` and `apache-2.0` are one."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _start(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would block
            return ""
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _of_card(text: str) -> str | None:
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return None
    try:
        matter = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(matter, dict):
        return None
    name = matter.get("license")
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if isinstance(name, str) and normalized(name) == "other":
        name = matter.get("license_name")
    return normalized(name) if isinstance(name, str) and name.strip() else None


def _of_text(text: str) -> str | None:
    title = re.sub(r"[\s*#=_]+", " ", text.lower())[:_TITLE]
    for pattern, name in _TITLES:
        found = re.search(pattern, title)
        if found is not None:
            return found.expand(name)
    return None

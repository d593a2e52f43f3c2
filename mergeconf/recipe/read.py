"""From a file, text or mapping to the documents that it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeconf.errors import Problem, RecipeError
from mergeconf.recipe.words import show
from mergeconf.recipe.yaml_scalars import write_yaml
from mergeconf.recipe.yaml_source import MOST_BYTES, Source, read_documents


def read_source(source: str | Path | Mapping[str, Any]) -> tuple[list[Source], Path | None]:
    """Return the documents of a recipe, at least one, and its file.

    Args:
        source: Path of a file; or text of YAML, told from a path by having a line break; or a
            mapping of plain data.

    Raises:
        RecipeError: there is no such file, or it holds no sound YAML.
    """
    if isinstance(source, Mapping):
        text = write_yaml(_plain(source, "", 0))
        read = read_documents(text, "")
        return [replace(item, keys={}, values={}) for item in read], None  # nobody has seen it
    if isinstance(source, str) and re.search(r"[\r\n]", source):
        return read_documents(source, "<recipe>"), None
    path = Path(source)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(Problem("no such file", where=str(source))) from None
    except IsADirectoryError:
        raise RecipeError(
            Problem("a folder, not a recipe", str(source), hint="name the recipe's file")
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(Problem(f"cannot be read: {reason}", where=str(source))) from None
    return read_documents(raw, str(source)), path


def _plain(data: object, where: str, depth: int) -> Any:
    """Return data as YAML can hold it: tuples as lists, paths and keys as text."""
    if depth > 60:
        raise RecipeError(Problem("nested too deep, or inside itself", where=where))
    prefix = f"{where}." if where else ""
    if isinstance(data, Mapping):
        items = data.items()
        return {str(key): _plain(item, f"{prefix}{key}", depth + 1) for key, item in items}
    if isinstance(data, (list, tuple)):
        return [_plain(item, f"{prefix}{i}", depth + 1) for i, item in enumerate(data)]
    if isinstance(data, int) and data.bit_length() > 4096:
        raise RecipeError(Problem(f"{show(data)} is too large", where=where))
    for kind in (bool, int, float, str):
        if isinstance(data, kind):
            return kind(data)
    if data is None or isinstance(data, Path):
        return None if data is None else str(data)
    raise RecipeError(Problem(f"a recipe cannot hold a {type(data).__name__}", where=where))

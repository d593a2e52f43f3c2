"""What commands have in common in what they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mergeconf.errors import MergeconfError, OutputError, Problem
from mergeconf.units import parse_size

INTERRUPTED = 130
INTERNAL_ERROR = 70

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Most memory to hold beyond the bare interpreter: 64MiB, 2GB.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="Worker threads; default: the processors."),
]


def cache_folder() -> Path:
    """Return the folder where digests of inputs are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "mergeconf" / "digests"


def print_problems(problems: Sequence[Problem]) -> None:
    """Print problems to standard error, one a line, and how many errors there are."""
    for problem in problems:
        prefix = "warning: " if problem.severity == "warning" else ""
        code = f" [{problem.code}]" if problem.code else ""
        print(f"{prefix}{problem}{code}", file=sys.stderr)
    errors = sum(problem.severity == "error" for problem in problems)
    if errors > 1:
        print(f"{errors} problems", file=sys.stderr)


def memory_bytes(text: str | None) -> int | None:
    """Return the value of `--memory` in bytes."""
    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise MergeconfError(Problem(str(error), where="--memory")) from None


def print_table(rows: Iterable[Sequence[str]], indent: str = "  ") -> None:
    """Print rows with aligned columns."""
    kept = [list(row) for row in rows]
    widths = [
        max(len(row[column]) for row in kept if column < len(row))
        for column in range(max((len(row) for row in kept), default=0))
    ]
    for row in kept:
        cells = [cell.ljust(width) for cell, width in zip(row, widths[: len(row)], strict=True)]
        print((indent + "  ".join(cells)).rstrip())


def refuse_folder(name: str) -> OutputError:
    """Return the error for an output name that cannot be derived."""
    return OutputError(Problem(f"no output folder can be named after {name}", hint="use -o OUT"))

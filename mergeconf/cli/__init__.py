"""The command line: the only place that prints, asks, reads the environment or sets exit codes.

One file a command. Commands import what they need when they are called, so that `--help`,
`methods` and `check` answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from mergeconf.cli import check, explain, methods, plan, run, schema, verify
from mergeconf.cli.output import INTERNAL_ERROR, INTERRUPTED, print_problems
from mergeconf.errors import Interrupted, MergeconfError, Problem

app = typer.Typer(
    name="mergeconf",
    help="Merge language models from declarative recipes: on CPU, in little memory, with the same "
    "bits every time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class _ReaderGone(Exception):
    """Who read our output has gone: `mergeconf plan ... | head`."""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Keep from typer what it would answer in its own way: Ctrl-C, and a reader that is gone."""

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise Interrupted(Problem("interrupted")) from None
        except BrokenPipeError:
            raise _ReaderGone from None

    return guarded


for module in (run, check, plan, explain, verify, methods, schema):
    app.command(module.NAME)(_guarded(module.command))


def _version(value: bool) -> None:
    if value:
        from mergeconf import __version__

        print(f"mergeconf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Merge language models from declarative recipes."""


def main() -> None:
    """Run the command line; no foreign exception leaves it as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show a φ or every path
    try:
        app(prog_name="mergeconf")
    except Interrupted as error:
        print_problems(error.problems)
        sys.exit(INTERRUPTED)
    except MergeconfError as error:
        print_problems(error.problems)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (BrokenPipeError, _ReaderGone):  # nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("MERGECONF_TRACEBACK"):
            raise
        name = type(error).__name__
        print(f"a defect of mergeconf: {name}: {error}", file=sys.stderr)
        print("set MERGECONF_TRACEBACK=1 to see where, and report it", file=sys.stderr)
        sys.exit(INTERNAL_ERROR)

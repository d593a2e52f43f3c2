"""`mergeconf verify`: is an output still what its lock says?"""

from __future__ import annotations

from typing import Annotated

import typer

from mergeconf.cli.output import print_table
from mergeconf.units import format_size

NAME = "verify"


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of a merged model.")],
    recompute: Annotated[
        str | None,
        typer.Option(
            "--recompute",
            metavar="N|all",
            help="Compute so many tensors again from the inputs, and compare every bit.",
        ),
    ] = None,
) -> None:
    """Compare a merged model with its mergeconf.lock, tensor by tensor.

    Exit code 0 if all is as the lock says, 2 if not; what is not is named.
    """
    from mergeconf.api import verify
    from mergeconf.errors import LockError

    found = verify(out, recompute=_count(recompute))
    if found.problems:
        raise LockError(found.problems)
    lock = found.lock
    rows = [
        ("tensors", f"{found.tensors:,} of {found.tensors:,}, {format_size(found.nbytes)}"),
        ("files", f"{len(lock.files):,} small files"),
    ]
    if found.recomputed:
        rows.append(("recomputed", f"{found.recomputed:,} tensors, bit for bit the same"))
    rows.append(("digest", lock.output_digest))
    print(f"{out}: as the lock says")
    print_table(rows)


def _count(text: str | None) -> int | None:
    if text is None:
        return 0
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter("expected a number of tensors, or all", param_hint="--recompute")
    return int(text)
